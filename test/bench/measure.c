// Runs a program and reports how long it took and how much memory it had.
//
//   measure REPORT PROGRAM [ARGUMENT...]
//
// REPORT gets one line per figure: elapsed, user and system seconds, and peak, the largest resident set in KiB that the program or
// one of the children that it waited for had (getrusage(2), ru_maxrss). Exits as the program does.
//
// It is a program of its own, and small, because ru_maxrss of a program starts with what its parent had when it called exec.

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double
now (void)
{
  struct timespec t;
  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static double
seconds (struct timeval t)
{
  return t.tv_sec + t.tv_usec / 1e6;
}

int
main (int argc, char **argv)
{
  if (argc < 3) {
    fprintf (stderr, "usage: measure REPORT PROGRAM [ARGUMENT...]\n");
    return 2;
  }
  double start = now ();
  pid_t pid = fork ();
  if (pid == 0) {
    execvp (argv[2], argv + 2);
    fprintf (stderr, "measure: %s: %s\n", argv[2], strerror (errno));
    _exit (127);
  }
  int status;
  struct rusage usage;
  if (pid < 0 || wait4 (pid, &status, 0, &usage) != pid) {
    fprintf (stderr, "measure: %s: %s\n", argv[2], strerror (errno));
    return 1;
  }
  double end = now ();

  FILE *report = fopen (argv[1], "we");
  if (!report) {
    fprintf (stderr, "measure: %s: %s\n", argv[1], strerror (errno));
    return 1;
  }
  fprintf (report, "elapsed %.6f\nuser %.6f\nsystem %.6f\npeak %ld\n", end - start, seconds (usage.ru_utime),
           seconds (usage.ru_stime), usage.ru_maxrss);
  if (fclose (report) != 0) {
    fprintf (stderr, "measure: %s: %s\n", argv[1], strerror (errno));
    return 1;
  }
  return WIFEXITED (status) ? WEXITSTATUS (status) : 128 + WTERMSIG (status);
}

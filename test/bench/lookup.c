// Measures what it costs to find files below a directory, and to start a program there.
//
//   lookup ROOT LIST PROGRAM
//
// LIST holds paths below ROOT, a line each, that exist; with ".no" after them, they do not. PROGRAM is the path below ROOT of a copy
// of this program, which does nothing if it has no arguments.
//
// Prints a line per figure: a name, and seconds for one path or one start, of the pass that took the shortest time, since whatever else goes
// on only adds to it. cold is the first stat(2) of each path when the kernel has forgotten all directory entries and inodes (/proc/sys/vm/drop_caches),
// of the layers as well, but still has the blocks that they are read from; warm is every later one.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PASSES = 10, WARM_PASSES = 5, STARTS = 20 };

struct paths {
  char **path;
  size_t count;
};

static void
die (const char *what)
{
  fprintf (stderr, "lookup: %s: %s\n", what, strerror (errno));
  exit (1);
}

static double
now (void)
{
  struct timespec t;
  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static void
add (struct paths *paths, const char *root, const char *path, const char *end)
{
  paths->path = reallocarray (paths->path, paths->count + 1, sizeof *paths->path);
  if (!paths->path || asprintf (&paths->path[paths->count++], "%s/%s%s", root, path, end) < 0)
    die (path);
}

static void
read_list (const char *list, const char *root, struct paths *existing, struct paths *missing)
{
  FILE *file = fopen (list, "re");
  if (!file)
    die (list);
  char *line = NULL;
  size_t size = 0;
  for (ssize_t n; (n = getline (&line, &size, file)) > 0;) {
    line[n - 1] = '\0';
    add (existing, root, line, "");
    add (missing, root, line, ".no");
  }
  fclose (file);
}

// Returns the seconds for one path.
static double
look (const struct paths *paths, int expected)
{
  struct stat st;
  double start = now ();
  for (size_t i = 0; i < paths->count; i++)
    if ((lstat (paths->path[i], &st) < 0 ? errno : 0) != expected)
      die (paths->path[i]);
  return (now () - start) / paths->count;
}

static void
forget (void)
{
  int fd = open ("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write (fd, "2", 1) != 1)
    die ("/proc/sys/vm/drop_caches");
  close (fd);
}

static void
report (const char *kind, const struct paths *paths, int expected)
{
  double cold = HUGE_VAL, warm = HUGE_VAL;
  for (int i = 0; i < PASSES; i++) {
    forget ();
    cold = fmin (cold, look (paths, expected));
    for (int j = 0; j < WARM_PASSES; j++)
      warm = fmin (warm, look (paths, expected));
  }
  printf ("cold-%s %.9f\nwarm-%s %.9f\n", kind, cold, kind, warm);
}

static void
start_once (char *program)
{
  char *argv[] = { program, NULL }, *env[] = { NULL };
  pid_t pid;
  int status;
  if ((errno = posix_spawn (&pid, program, NULL, NULL, argv, env)) != 0 || waitpid (pid, &status, 0) != pid || status != 0)
    die (program);
}

int
main (int argc, char **argv)
{
  if (argc == 1)
    return 0;
  if (argc != 4) {
    fprintf (stderr, "usage: lookup ROOT LIST PROGRAM\n");
    return 2;
  }
  struct paths existing = { 0 }, missing = { 0 };
  read_list (argv[2], argv[1], &existing, &missing);
  report ("existing", &existing, 0);
  report ("missing", &missing, ENOENT);

  char *program;
  if (asprintf (&program, "%s/%s", argv[1], argv[3]) < 0)
    die (argv[3]);
  double shortest = HUGE_VAL;
  for (int i = 0; i < PASSES; i++) {
    double start = now ();
    for (int j = 0; j < STARTS; j++)
      start_once (program);
    shortest = fmin (shortest, (now () - start) / STARTS);
  }
  printf ("start %.9f\n", shortest);
  return 0;
}

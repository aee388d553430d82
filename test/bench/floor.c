// Makes a layer with nothing but the system calls that it takes, and mounts it: what no program that makes the same
// directory entries can undercut by much, on one processor.
//
//   floor LIST REPO BOOTED WORK
//
// LIST holds what to make, in this order, one record each, ended by NUL, since names may contain newlines:
//
//   d MODE UID GID PATH    a directory (MODE octal)
//   l OBJECT PATH          a hard link to a file object, which is named relative to REPO
//   w PATH                 a whiteout
//   o PATH                 this directory is opaque
//
// BOOTED is the lower directory of the overlay, WORK an empty directory on the repo's filesystem; both are absolute. Run in a
// mount namespace of its own. The list is read before the clock starts; the repo is not read at all, and directories get no
// xattrs and no times. Prints one line per figure: a name and seconds.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

struct record {
  char op;
  mode_t mode;
  unsigned uid, gid;
  char *object, *path;
};

static void
die (const char *what)
{
  fprintf (stderr, "floor: %s: %s\n", what, strerror (errno));
  exit (1);
}

static double
now (void)
{
  struct timespec t;
  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static char *
read_all (const char *path, size_t *size)
{
  struct stat st;
  int fd = open (path, O_RDONLY | O_CLOEXEC);
  if (fd < 0 || fstat (fd, &st) < 0)
    die (path);
  char *data = malloc (st.st_size + 1);
  if (!data || read (fd, data, st.st_size) != st.st_size)
    die (path);
  close (fd);
  data[st.st_size] = 0;
  *size = st.st_size;
  return data;
}

// Sets the fields of a record; the strings stay where they are.
static void
parse (struct record *r, char *text)
{
  int path = 0;
  memset (r, 0, sizeof *r);
  r->op = text[0];
  switch (r->op) {
  case 'd':
    sscanf (text, "d %o %u %u %n", &r->mode, &r->uid, &r->gid, &path);
    break;
  case 'l':
    r->object = text + 2;
    path = strcspn (r->object, " ") + 3;
    text[path - 1] = 0;
    break;
  case 'w':
  case 'o':
    path = 2;
  }
  if (path == 0) {
    fprintf (stderr, "floor: bad record %s\n", text);
    exit (1);
  }
  r->path = text + path;
}

static struct record *
parse_list (const char *path, size_t *count)
{
  size_t size, n = 0;
  char *data = read_all (path, &size);
  for (size_t i = 0; i < size; i++)
    n += data[i] == 0;
  struct record *records = calloc (n, sizeof *records);
  if (!records)
    die (path);
  for (size_t i = 0; i < n; i++) {
    char *next = data + strlen (data) + 1;
    parse (&records[i], data);
    data = next;
  }
  *count = n;
  return records;
}

// The working directory is the layer.
static void
make (const struct record *r, int repo)
{
  switch (r->op) {
  case 'd':
    if (mkdirat (AT_FDCWD, r->path, r->mode) < 0 && errno != EEXIST)
      die (r->path);
    if ((r->uid || r->gid) && fchownat (AT_FDCWD, r->path, r->uid, r->gid, 0) < 0)
      die (r->path);
    break;
  case 'l':
    if (linkat (repo, r->object, AT_FDCWD, r->path, 0) < 0)
      die (r->path);
    break;
  case 'w':
    if (mknodat (AT_FDCWD, r->path, S_IFCHR, 0) < 0)
      die (r->path);
    break;
  case 'o':
    if (setxattr (r->path, "trusted.overlay.opaque", "y", 1, 0) < 0)
      die (r->path);
  }
}

static void
mount_overlay (const char *booted, const char *work)
{
  char *options;
  if (chdir (work) < 0 || asprintf (&options, "lowerdir=layer:%s", booted) < 0)
    die (work);
  if (mount ("overlay", "usr", "overlay", MS_RDONLY, options) < 0)
    die ("mount the overlay");
  free (options);
}

int
main (int argc, char **argv)
{
  if (argc != 5) {
    fprintf (stderr, "usage: floor LIST REPO BOOTED WORK\n");
    return 2;
  }
  const char *booted = argv[3], *work = argv[4];
  umask (0);
  size_t count;
  struct record *records = parse_list (argv[1], &count);
  int repo = open (argv[2], O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (repo < 0)
    die (argv[2]);
  if (chdir (work) < 0 || mkdir ("usr", 0755) < 0 || mkdir ("layer", 0755) < 0 || chdir ("layer") < 0)
    die (work);

  double start = now ();
  for (size_t i = 0; i < count; i++)
    make (&records[i], repo);
  double made = now ();
  mount_overlay (booted, work);
  double end = now ();

  printf ("total %.6f\nbuild %.6f\nmount %.6f\n", end - start, made - start, end - made);
  return 0;
}

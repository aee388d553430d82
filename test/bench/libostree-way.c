// Brings what a commit changed below /usr into a writable overlayfs, the way `rpm-ostree apply-live` does it.
//
//   libostree-way REPO OLD NEW BOOTED WORK
//
// BOOTED is a checkout of OLD's /usr, WORK an empty directory on the same filesystem; both are absolute. Run in a mount
// namespace of its own. Prints one line per figure: a name and seconds, or a name and a count.
//
// What is mirrored, function by function (rpm-ostree 2026.2, rust/src/live.rs; the diff is ostree-ext's, src/diff.rs):
//
//   unlock            ostree_sysroot_deployment_unlock (TRANSIENT): upper and work below the deployment's backing directory, so on the
//                     repo's filesystem; the deployment's own /usr below; a read-only mount that rpm-ostree then makes writable for itself.
//                     Not mirrored: the fork for the mount, the systemd unit that rpm-ostree runs `ostree admin unlock` in, the flag file.
//   diff_recurse      ostree_ext::diff::diff with the subdirectory /usr: OstreeRepoFile and its enumerator, one query for each entry on
//                     either side. An added or removed directory is one entry of the result.
//   apply_diff        each added directory, added file and changed file by one ostree_repo_checkout_at with subpath, with force_copy
//                     and UNION_FILES, in sorted order; then the removals, in parallel. rpm-ostree refuses a changed dirmeta of a
//                     directory; here it is counted, and otherwise ignored.
//
// Left out, which makes this faster than the original: the package diff, the refs, /etc, systemd-tmpfiles.

#define _GNU_SOURCE
#include <errno.h>
#include <ftw.h>
#include <gio/gio.h>
#include <ostree.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define QUERY "standard::name,standard::type"
#define NOFOLLOW G_FILE_QUERY_INFO_NOFOLLOW_SYMLINKS

// FileTreeDiff. Paths start with a slash and are relative to the subdirectory.
typedef struct {
  GPtrArray *added_files, *added_dirs, *removed_files, *removed_dirs, *changed_files, *changed_dirs;
} Diff;

static void
die (const char *what)
{
  fprintf (stderr, "libostree-way: %s: %s\n", what, strerror (errno));
  exit (1);
}

static void
check (gboolean ok, GError *error, const char *what)
{
  if (ok)
    return;
  fprintf (stderr, "libostree-way: %s: %s\n", what, error ? error->message : "failed");
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
unlock (const char *booted, const char *work)
{
  if (chdir (work) < 0 || mkdir ("upper", 0755) < 0 || mkdir ("work", 0755) < 0 || mkdir ("usr", 0755) < 0)
    die (work);
  g_autofree char *options = g_strdup_printf ("lowerdir=%s,upperdir=upper,workdir=work", booted);
  if (mount ("overlay", "usr", "overlay", MS_RDONLY, options) < 0)
    die ("mount the overlay");
  if (mount (NULL, "usr", NULL, MS_REMOUNT | MS_SILENT, NULL) < 0)
    die ("make the overlay writable");
}

// query_info_optional: NULL if there is no such file.
static GFileInfo *
query (GFile *file)
{
  g_autoptr (GError) error = NULL;
  GFileInfo *info = g_file_query_info (file, QUERY, NOFOLLOW, NULL, &error);
  check (info || g_error_matches (error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND), error, "query");
  return info;
}

static GFileEnumerator *
enumerate (GFile *dir)
{
  g_autoptr (GError) error = NULL;
  GFileEnumerator *children = g_file_enumerate_children (dir, QUERY, NOFOLLOW, NULL, &error);
  check (children != NULL, error, "enumerate");
  return children;
}

static GFileInfo *
next (GFileEnumerator *children)
{
  g_autoptr (GError) error = NULL;
  GFileInfo *info = g_file_enumerator_next_file (children, NULL, &error);
  check (error == NULL, error, "enumerate");
  return info;
}

static OstreeRepoFile *
resolved (GFile *file)
{
  g_autoptr (GError) error = NULL;
  check (ostree_repo_file_ensure_resolved (OSTREE_REPO_FILE (file), &error), error, "resolve");
  return OSTREE_REPO_FILE (file);
}

static gboolean
is_dir (GFileInfo *info)
{
  return g_file_info_get_file_type (info) == G_FILE_TYPE_DIRECTORY;
}

static void diff_recurse (const char *prefix, Diff *diff, GFile *from, GFile *to);

static void
diff_both (const char *path, Diff *diff, gboolean dir, GFile *from, GFile *to)
{
  OstreeRepoFile *f = resolved (from), *t = resolved (to);
  if (!dir) {
    if (strcmp (ostree_repo_file_get_checksum (f), ostree_repo_file_get_checksum (t)) != 0)
      g_ptr_array_add (diff->changed_files, g_strdup (path));
    return;
  }
  if (g_strcmp0 (ostree_repo_file_tree_get_contents_checksum (f), ostree_repo_file_tree_get_contents_checksum (t)) != 0) {
    g_autofree char *below = g_strconcat (path, "/", NULL);
    diff_recurse (below, diff, from, to);
  }
  if (g_strcmp0 (ostree_repo_file_tree_get_metadata_checksum (f), ostree_repo_file_tree_get_metadata_checksum (t)) != 0)
    g_ptr_array_add (diff->changed_dirs, g_strdup (path));
}

static void
diff_recurse (const char *prefix, Diff *diff, GFile *from, GFile *to)
{
  g_autoptr (GFileEnumerator) from_children = enumerate (from);
  for (;;) {
    g_autoptr (GFileInfo) info = next (from_children);
    if (!info)
      break;
    g_autofree char *path = g_strconcat (prefix, g_file_info_get_name (info), NULL);
    g_autoptr (GFile) to_child = g_file_get_child (to, g_file_info_get_name (info));
    g_autoptr (GFileInfo) to_info = query (to_child);
    if (to_info) {
      g_autoptr (GFile) from_child = g_file_enumerator_get_child (from_children, info);
      diff_both (path, diff, is_dir (info), from_child, to_child);
    } else
      g_ptr_array_add (is_dir (info) ? diff->removed_dirs : diff->removed_files, g_steal_pointer (&path));
  }
  g_autoptr (GFileEnumerator) to_children = enumerate (to);
  for (;;) {
    g_autoptr (GFileInfo) info = next (to_children);
    if (!info)
      break;
    g_autoptr (GFile) from_child = g_file_get_child (from, g_file_info_get_name (info));
    g_autoptr (GFileInfo) from_info = query (from_child);
    if (!from_info)
      g_ptr_array_add (is_dir (info) ? diff->added_dirs : diff->added_files,
                       g_strconcat (prefix, g_file_info_get_name (info), NULL));
  }
}

static GFile *
usr_of (OstreeRepo *repo, const char *commit)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (GFile) root = NULL;
  check (ostree_repo_read_commit (repo, commit, &root, NULL, NULL, &error), error, "read the commit");
  GFile *usr = g_file_resolve_relative_path (root, "usr");
  resolved (usr);
  return usr;
}

// ostree-ext keeps each of the lists in a sorted set.
static int
by_path (gconstpointer a, gconstpointer b)
{
  return strcmp (*(char *const *)a, *(char *const *)b);
}

static Diff
diff_of (OstreeRepo *repo, const char *old, const char *new)
{
  Diff diff;
  GPtrArray **lists[] = { &diff.added_files, &diff.added_dirs, &diff.removed_files,
                          &diff.removed_dirs, &diff.changed_files, &diff.changed_dirs };
  for (gsize i = 0; i < G_N_ELEMENTS (lists); i++)
    *lists[i] = g_ptr_array_new_with_free_func (g_free);
  g_autoptr (GFile) from = usr_of (repo, old), to = usr_of (repo, new);
  diff_recurse ("/", &diff, from, to);
  for (gsize i = 0; i < G_N_ELEMENTS (lists); i++)
    g_ptr_array_sort (*lists[i], by_path);
  return diff;
}

// A directory is checked out to its own path, a file into the directory that it is in.
static void
checkout (OstreeRepo *repo, const char *commit, int dest, GPtrArray *paths, gboolean dirs)
{
  for (guint i = 0; i < paths->len; i++) {
    const char *path = paths->pdata[i];
    g_autoptr (GError) error = NULL;
    g_autofree char *subpath = g_strconcat ("/usr", path, NULL);
    g_autofree char *at = dirs ? g_strdup (path + 1) : g_path_get_dirname (path + 1);
    OstreeRepoCheckoutAtOptions options = {
      .overwrite_mode = OSTREE_REPO_CHECKOUT_OVERWRITE_UNION_FILES,
      .force_copy = TRUE,
      .subpath = subpath,
    };
    check (ostree_repo_checkout_at (repo, &options, dest, at, commit, NULL, &error), error, path);
  }
}

static int
remove_one (const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
  (void)st, (void)kind, (void)ftw;
  return remove (path);
}

// Runs in the directory that is the overlay.
static void
remove_all (gpointer path, gpointer data)
{
  (void)data;
  if (nftw ((char *)path + 1, remove_one, 16, FTW_DEPTH | FTW_PHYS) < 0 && errno != ENOENT)
    die (path);
}

static void
apply_diff (OstreeRepo *repo, const char *commit, const Diff *diff, int dest)
{
  checkout (repo, commit, dest, diff->added_dirs, TRUE);
  checkout (repo, commit, dest, diff->added_files, FALSE);
  checkout (repo, commit, dest, diff->changed_files, FALSE);

  GThreadPool *pool = g_thread_pool_new (remove_all, NULL, g_get_num_processors (), TRUE, NULL);
  for (guint i = 0; i < diff->removed_files->len; i++)
    g_thread_pool_push (pool, diff->removed_files->pdata[i], NULL);
  for (guint i = 0; i < diff->removed_dirs->len; i++)
    g_thread_pool_push (pool, diff->removed_dirs->pdata[i], NULL);
  g_thread_pool_free (pool, FALSE, TRUE);
}

int
main (int argc, char **argv)
{
  if (argc != 6) {
    fprintf (stderr, "usage: libostree-way REPO OLD NEW BOOTED WORK\n");
    return 2;
  }
  const char *old = argv[2], *new = argv[3], *booted = argv[4], *work = argv[5];
  umask (0);

  double start = now ();
  g_autoptr (GError) error = NULL;
  g_autoptr (OstreeRepo) repo = ostree_repo_open_at (AT_FDCWD, argv[1], NULL, &error);
  check (repo != NULL, error, "open the repo");
  unlock (booted, work);
  if (chdir ("usr") < 0)
    die ("usr");
  double unlocked = now ();
  Diff diff = diff_of (repo, old, new);
  double compared = now ();
  apply_diff (repo, new, &diff, AT_FDCWD);
  double end = now ();

  printf ("total %.6f\nmount %.6f\ndiff %.6f\nbuild %.6f\nchanged-dirs %u\n", end - start, unlocked - start,
          compared - unlocked, end - compared, diff.changed_dirs->len);
  return 0;
}

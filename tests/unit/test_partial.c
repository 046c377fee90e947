/* F.partial: who may write to it, and what is never written over. */
#include "tools/partial.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static char dir[64], partial[128], other[128];

static void make_dir(void)
{
    snprintf(dir, sizeof(dir), "/tmp/rp-partial-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    snprintf(partial, sizeof(partial), "%s/F.partial", dir);
    snprintf(other, sizeof(other), "%s/other", dir);
    alarm(60);      /* what waits for somebody waits for ever */
}

static void remove_dir(void)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    cr_assert_eq(system(command), 0);
}

TestSuite(partial, .init = make_dir, .fini = remove_dir);

static void put(const char *path, const char *text, mode_t mode)
{
    FILE *f = fopen(path, "w");
    cr_assert(f && fputs(text, f) >= 0 && fclose(f) == 0 && chmod(path, mode) == 0);
}

static void holds(const char *path, const char *text)
{
    char is[64] = "";
    FILE *f = fopen(path, "r");
    cr_assert_not_null(f);
    cr_assert_eq(fread(is, 1, sizeof(is) - 1, f), strlen(text));
    cr_assert_str_eq(is, text);
    fclose(f);
}

static int opened(void)
{
    struct rp_error err = {0};
    struct stat st;
    int fd = -1;
    cr_assert_eq(rp_partial_open(partial, &fd, &err), 0, "%s", err.text);
    cr_assert_eq(lstat(partial, &st), 0);
    cr_assert(S_ISREG(st.st_mode) && (st.st_mode & 07777) == 0600 && st.st_size == 0, "mode %o, %ld bytes", st.st_mode, (long)st.st_size);
    return fd;
}

static void refused(int code, enum rp_exit exit, const char *why)
{
    struct rp_error err = {0};
    int fd = -1;
    cr_assert_eq(rp_partial_open(partial, &fd, &err), code, "%s", err.text);
    cr_assert(err.exit == exit && strstr(err.text, partial) && strstr(err.text, why) && strstr(err.text, "give another path"), "%s", err.text);
    cr_assert_eq(fd, -1);
}

Test(partial, is_made_and_becomes_the_file)
{
    int fd = opened();
    cr_assert_eq(write(fd, "whole", 5), 5);
    put(other, "older", 0644);
    cr_assert_eq(rp_partial_rename(partial, fd, other, NULL), 0);
    close(fd);
    holds(other, "whole");
    cr_assert(access(partial, F_OK) < 0 && errno == ENOENT);
}

Test(partial, what_was_interrupted_is_taken_over_and_closed_to_others)
{
    put(partial, "half of a guest's memory", 0666);
    int fd = opened();
    rp_partial_remove(partial, fd);
    close(fd);
    cr_assert(access(partial, F_OK) < 0);
}

Test(partial, a_second_writer_is_refused)
{
    int fd = opened();
    cr_assert_eq(write(fd, "first", 5), 5);
    refused(-EBUSY, RP_EXIT_REFUSED, "another checkpoint is being written there");
    holds(partial, "first");
    cr_assert_eq(rp_partial_rename(partial, fd, other, NULL), 0);
    int second = opened();      /* the first holds its own file, under the other name */
    close(fd);
    close(second);
    holds(other, "first");
}

Test(partial, another_name_of_a_file_is_left_alone)
{
    put(other, "a disk", 0644);
    cr_assert_eq(link(other, partial), 0);
    refused(-EEXIST, RP_EXIT_USAGE, "hard links");
    holds(other, "a disk");
    cr_assert_eq(unlink(partial), 0);
    cr_assert_eq(symlink(other, partial), 0);
    refused(-EEXIST, RP_EXIT_USAGE, "no regular file");
    holds(other, "a disk");
}

Test(partial, what_is_no_file_is_refused_at_once)
{
    cr_assert_eq(mkfifo(partial, 0600), 0);
    refused(-EEXIST, RP_EXIT_USAGE, "no regular file");
    cr_assert_eq(unlink(partial), 0);
    cr_assert_eq(mkdir(partial, 0700), 0);
    refused(-EEXIST, RP_EXIT_USAGE, "no regular file");
    cr_assert_eq(rmdir(partial), 0);
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof(at.sun_path), "%s/F.partial", dir);
    int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(bind(s, (struct sockaddr *)&at, sizeof(at)), 0);
    refused(-EEXIST, RP_EXIT_USAGE, "no regular file");
    close(s);
}

Test(partial, another_users_file_is_left_alone)
{
    put(partial, "theirs", 0666);
    if (chown(partial, 1, 1) < 0)
        cr_skip_test("to give a file away takes root: %s", strerror(errno));
    refused(-EEXIST, RP_EXIT_USAGE, "belongs to another user");
    holds(partial, "theirs");
}

/* Who holds a file that has lost its name has nothing to rename or remove. */
Test(partial, what_took_its_place_is_left_alone)
{
    struct rp_error err = {0};
    int fd = opened();
    cr_assert_eq(unlink(partial), 0);
    put(partial, "another", 0600);
    cr_assert_eq(rp_partial_rename(partial, fd, other, &err), -ESTALE, "%s", err.text);
    rp_partial_remove(partial, fd);
    holds(partial, "another");
    cr_assert(access(other, F_OK) < 0);
    close(fd);
}

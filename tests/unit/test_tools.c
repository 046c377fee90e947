/* The command's own parts: values, the words of --disk and --net, the sandbox, sd_notify. */
#include "tools/args.h"
#include "tools/job.h"
#include "tools/json.h"
#include "tools/notify.h"
#include "tools/process.h"
#include "tools/qmp_tables.h"
#include "tools/sandbox.h"
#include "tools/verbs.h"
#include "tools/vm_options.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

Test(values, sizes_durations_rates)
{
    struct rp_error err = {0};
    uint64_t n = 0;
    cr_assert(rp_parse_size("x", "512M", &n, &err) == 0 && n == 512ull << 20);
    cr_assert(rp_parse_size("x", "4096", &n, &err) == 0 && n == 4096);
    cr_assert(rp_parse_duration("x", "20ms", &n, &err) == 0 && n == 20000000);
    cr_assert(rp_parse_rate("x", "1Gbit", &n, &err) == 0 && n == 125000000);
    static const char *const bad[] = {"", "M", "-1", "1Q", "1 G", "0x10", "99999999999999999999", "1e3", "nan", NULL};
    for (int i = 0; bad[i]; i++) {
        err = (struct rp_error){0};
        cr_assert(rp_parse_size("--memory", bad[i], &n, &err) == -EINVAL, "%s", bad[i]);
        cr_assert(err.exit == RP_EXIT_USAGE && strstr(err.text, "--memory"), "%s", err.text);
    }
    cr_assert(rp_parse_duration("x", "20", &n, &err) < 0);
}

/* What a peer says, and what was cut in the middle of a character, is told all the same. */
Test(values, texts)
{
    static const char *const texts[][2] = {{"/srv/\xc3\xa4", "/srv/\xc3\xa4"}, {"/srv/\xc3\xa4\xc3", "/srv/???"}, {"\xff\"x", "?\"x"}, {"", ""}};
    for (unsigned i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        json_t *s = rp_json_readable(texts[i][0]);
        cr_assert(s && strcmp(json_string_value(s), texts[i][1]) == 0, "text %u: %s", i, s ? json_string_value(s) : "none");
        json_decref(s);
    }
}

static int disk(struct rp_machine_config *m, const char *text, struct rp_error *err)
{
    return rp_parse_disk(m, strdup(text), err);     /* the config points into it */
}

static int net(struct rp_machine_config *m, const char *text, struct rp_error *err)
{
    return rp_parse_net(m, strdup(text), err);
}

Test(words, disks)
{
    struct rp_error err = {0};
    struct rp_machine_config m = {0};
    cr_assert(disk(&m, "/a,,b,ro,serial=S1,queues=2", &err) == 0, "%s", err.text);
    cr_assert(m.ndisks == 1 && strcmp(m.disks[0].path, "/a,b") == 0 && m.disks[0].readonly && m.disks[0].queues == 2 &&
              strcmp(m.disks[0].serial, "S1") == 0 && m.disks[0].fd == -1);
    cr_assert(!m.disks[0].overwrite);
    cr_assert(disk(&m, "fd:0,overwrite", &err) == 0 && m.disks[1].fd == 0 && m.disks[1].path == NULL && m.disks[1].overwrite);
    static const char *const bad[] = {"", ",ro", "/a,rw", "/a,serial=", "/a,serial=123456789012345678901", "/a,queues=0", "fd:x", "fd:9999",
                                      "/a,", NULL};
    for (int i = 0; bad[i]; i++) {
        err = (struct rp_error){0};
        cr_assert(disk(&m, bad[i], &err) < 0 && err.exit == RP_EXIT_USAGE && strstr(err.text, "--disk"), "%s: %s", bad[i], err.text);
    }
    cr_assert(m.ndisks == 2, "a refused disk was added");
    for (int i = 2; i < RP_DISKS_MAX; i++)
        cr_assert(disk(&m, "/d", &err) == 0);
    cr_assert(disk(&m, "/d", &err) < 0 && strstr(err.text, "too many"));
}

Test(words, nets)
{
    struct rp_error err = {0};
    struct rp_machine_config m = {0};
    cr_assert(net(&m, "tap:tap0,mac=52:54:00:12:34:56", &err) == 0 && m.nics[0].has_mac && m.nics[0].mac[5] == 0x56);
    cr_assert(net(&m, "unix:/run/passt.sock,queues=1", &err) == 0 && strcmp(m.nics[1].name, "/run/passt.sock") == 0);
    static const char *const bad[] = {"", "tap:", "tap0", "unix:", "fd:-1", "tap:a,mac=01:00:00:00:00:01", "tap:a,mac=52:54", "tap:a,up", NULL};
    for (int i = 0; bad[i]; i++) {
        err = (struct rp_error){0};
        cr_assert(net(&m, bad[i], &err) < 0 && err.exit == RP_EXIT_USAGE && strstr(err.text, "--net"), "%s: %s", bad[i], err.text);
    }
    cr_assert(m.nnics == 2);
}

Test(words, chardevs)
{
    struct rp_error err = {0};
    struct rp_chardev_config c = {0};
    char file[] = "file:/tmp/x", none[] = "file:", other[] = "pty";
    cr_assert(rp_parse_chardev(&c, file, &err) == 0 && c.kind == RP_SERIAL_FILE && strcmp(c.path, "/tmp/x") == 0);
    cr_assert(rp_parse_chardev(&c, none, &err) < 0 && rp_parse_chardev(&c, other, &err) < 0);
}

Test(notify, reaches_a_path_and_an_abstract_name)
{
    char path[] = "/tmp/reprise-notify-XXXXXX";
    cr_assert(mkdtemp(path));
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    for (int abstract = 0; abstract < 2; abstract++) {
        char name[sizeof(a.sun_path)], got[64] = "";
        snprintf(name, sizeof(name), "%s%s/s", abstract ? "@" : "", path);
        memset(a.sun_path, 0, sizeof(a.sun_path));
        memcpy(a.sun_path + abstract, name + abstract, strlen(name + abstract));
        int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
        cr_assert(bind(fd, (struct sockaddr *)&a, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name))) == 0, "%s",
                  strerror(errno));
        setenv("NOTIFY_SOCKET", name, 1);
        rp_notify("READY=1");
        cr_assert(recv(fd, got, sizeof(got) - 1, MSG_DONTWAIT) == 7 && strcmp(got, "READY=1") == 0, "got \"%s\" at %s", got, name);
        close(fd);
    }
    char file[sizeof(path) + 4];
    snprintf(file, sizeof(file), "%s/s", path);
    unlink(file);
    rmdir(path);
}

static void *thread_main(void *arg)
{
    *(int *)arg = 42;
    return NULL;
}

/* In a child: what must work works, what must not is refused. The exit code is the line that disagreed. */
static int inside(void)
{
    struct rp_error err = {0};
    if (rp_sandbox_enter(RP_SANDBOX_ON, false, &err) < 0)
        return 1;
    pthread_t t;
    int answer = 0;
    if (pthread_create(&t, NULL, thread_main, &answer) || pthread_join(t, NULL) || answer != 42)
        return 2;
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (fd < 0 || write(fd, "x", 1) != 1 || close(fd))
        return 3;
    free(malloc(64u << 20));
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    if (s < 0 || close(s))
        return 4;
    char *const none[] = {NULL};
    if (execve("/bin/true", none, none) == 0 || errno != EPERM)
        return 5;
    if (fork() >= 0)
        return 6;
    if (socket(AF_PACKET, SOCK_RAW, 0) >= 0 || errno != EPERM)
        return 7;
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0)
        return 8;
    if (kill(getppid(), 0) == 0 || kill(getpid(), 0) != 0)
        return 9;
    if (setuid(getuid()) == 0)
        return 10;
    return 0;
}

Test(sandbox, leaves_what_a_vm_needs_and_nothing_more)
{
    pid_t child = fork();
    if (child == 0)
        _exit(inside());
    int status = 0;
    cr_assert(waitpid(child, &status, 0) == child);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status 0x%x", (unsigned)status);
}

static int make_nothing(struct rp_vm *vm, struct rp_vm_options *o, void *ctx, struct rp_error *err)
{
    (void)vm, (void)o, (void)ctx, (void)err;
    return 0;
}

/* A device is no place for a process id. What names it is left alone: for root that would be the device itself. */
Test(process, a_pidfile_that_is_no_file)
{
    char folder[] = "/tmp/reprise-test-process-XXXXXX", pidfile[64];
    struct rp_vm_options o = rp_vm_options_defaults;
    struct rp_error err = {0};
    struct stat st;
    cr_assert(mkdtemp(folder) != NULL && setenv("REPRISE_RUNTIME_DIR", folder, 1) == 0);
    snprintf(pidfile, sizeof(pidfile), "%s/pid", folder);
    cr_assert_eq(symlink("/dev/null", pidfile), 0);
    snprintf(o.machine.name, sizeof(o.machine.name), "vm");
    o.pidfile = pidfile;
    cr_assert_eq(rp_process_run(&o, make_nothing, NULL, &err), -EEXIST, "%s", err.text);
    cr_assert(err.exit == RP_EXIT_USAGE && strstr(err.text, "left alone"), "%s", err.text);
    cr_assert_eq(lstat(pidfile, &st), 0, "its name is gone");
    unlink(pidfile);
    rmdir(folder);
}

/* `reprise checkpoint PATH file:F --quit --quiet`, in a process of its own. */
static pid_t checkpoint_and_quit(const char *path)
{
    pid_t child = fork();
    if (child)
        return child;
    char verb[] = "checkpoint", quit[] = "--quit", quiet[] = "--quiet", *vm = strdup(path), file[] = "file:/nowhere/image";
    char *argv[] = {verb, vm, file, quit, quiet, NULL}, **operands = NULL;
    struct rp_error err = {0};
    unsigned n = 0;
    void *opts = calloc(1, rp_verb_checkpoint.opts_size);
    int rc = rp_args_parse(&rp_verb_checkpoint, 5, argv, opts, &operands, &n, &err);
    _exit(rc == 0 ? -rp_verb_checkpoint.run(&rp_verb_checkpoint, opts, n, operands, &err) : EXIT_FAILURE);
}

/* A VM that was to end after its checkpoint is waited for: what it uses is free when the command returns. */
Test(checkpoint, quit_is_waited_for)
{
    static const char *const answers[] = {"{\"QMP\": {}}\r\n", "{\"return\": {}}\r\n", "{\"return\": {\"job-id\": \"one\", \"epoch\": 1}}\r\n",
                                          "{\"return\": [{\"id\": \"one\", \"status\": \"concluded\"}]}\r\n"};
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    char asked[4096];
    int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), status = 0;
    snprintf(at.sun_path, sizeof(at.sun_path), "/tmp/reprise-test-quit-%d", getpid());
    cr_assert(bind(server, (struct sockaddr *)&at, sizeof(at)) == 0 && listen(server, 1) == 0);
    pid_t child = checkpoint_and_quit(at.sun_path);
    int vm = accept4(server, NULL, NULL, SOCK_CLOEXEC);
    unlink(at.sun_path);
    for (unsigned i = 0; i < sizeof(answers) / sizeof(answers[0]); i++) {
        cr_assert(i == 0 || recv(vm, asked, sizeof(asked), 0) > 0);
        cr_assert_eq(send(vm, answers[i], strlen(answers[i]), MSG_NOSIGNAL), (ssize_t)strlen(answers[i]));
    }
    struct pollfd p = {.fd = vm, .events = POLLIN};
    cr_assert_eq(poll(&p, 1, 300), 0, "it returns before the VM has ended");
    close(vm);
    cr_assert(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned)status);
    close(server);
}

/* A command of protection, run without a VM. */
static int ask(const char *command, const char *args, struct rp_error *err)
{
    struct rp_qmp_table t = rp_qmp_protect_table();
    struct rp_qmp_call call = {.args = json_loads(args, 0, NULL)};
    unsigned i = 0;
    while (i < t.n && strcmp(t.commands[i].name, command) != 0)
        i++;
    cr_assert(i < t.n && call.args, "%s %s", command, args);
    int rc = t.commands[i].run(&call, err);
    json_decref(call.args);
    return rc;
}

/* A number that is too large for what it becomes is refused, not cut to what fits. */
Test(protect, numbers_in_their_ranges)
{
    static const char *const args[] = {
        "{\"uri\": \"unix:/x\", \"streams\": 4294967297}", "{\"uri\": \"unix:/x\", \"cpu\": 4294967296}",
        "{\"uri\": \"unix:/x\", \"epoch-us\": 18446744073709552}", "{\"uri\": \"unix:/x\", \"latency-us\": 18446744073709552}",
        "{\"uri\": \"unix:/x\", \"lease-ttl-ms\": 4294969296}", "{\"uri\": \"unix:/x\", \"heartbeat-ms\": 18446744073710}"};
    struct rp_error err = {0};
    for (unsigned i = 0; i < sizeof(args) / sizeof(args[0]); i++) {
        cr_assert_eq(ask("protect", args[i], &err), -ERANGE, "%s: %s", args[i], err.text);
        cr_assert(err.exit == RP_EXIT_USAGE && strstr(err.text, "out of range"), "%s", err.text);
    }
    cr_assert_eq(ask("failover", "{\"timeout-ms\": 4294967297}", &err), -ERANGE, "%s", err.text);
}

static int no_work(struct rp_job *job, void *arg, struct rp_error *err)
{
    (void)job, (void)arg, (void)err;
    return 0;
}

/* A job's id goes into events, which are JSON. */
Test(jobs, an_id_that_cannot_be_one)
{
    static const struct rp_job_kind kind = {.type = "nothing", .run = no_work, .free = free};
    static const char *const none[] = {"a\"b", "a\\b", "a\nb", "a\x7f", "\xc3\xa4"};
    struct rp_error err = {0};
    struct rp_jobs *jobs = NULL;
    struct rp_events *events = NULL;
    cr_assert(rp_events_create(16, &events) == 0 && rp_jobs_create(events, &jobs, &err) == 0, "%s", err.text);
    for (unsigned i = 0; i < sizeof(none) / sizeof(none[0]); i++)
        cr_assert_eq(rp_job_start(jobs, &kind, none[i], false, NULL, NULL, &err), -EEXIST, "%s", none[i]);
    cr_assert_eq(rp_job_start(jobs, &kind, "a job's: 1", false, NULL, NULL, &err), 0, "%s", err.text);
    rp_jobs_destroy(jobs);
    rp_events_destroy(events);
}

/* Who waits for a job by its id would take another's end for its own. */
Test(jobs, no_two_have_one_id)
{
    static const struct rp_job_kind kind = {.type = "nothing", .run = no_work, .free = free};
    struct rp_error err = {0};
    struct rp_jobs *jobs = NULL;
    struct rp_events *events = NULL;
    const char *id = NULL;
    cr_assert(rp_events_create(16, &events) == 0 && rp_jobs_create(events, &jobs, &err) == 0, "%s", err.text);
    cr_assert_eq(rp_job_start(jobs, &kind, "nothing-1", false, NULL, NULL, &err), 0, "%s", err.text);
    cr_assert_eq(rp_job_start(jobs, &kind, NULL, false, NULL, &id, &err), 0, "%s", err.text);
    cr_assert_str_eq(id, "nothing-2");
    rp_jobs_destroy(jobs);
    rp_events_destroy(events);
}

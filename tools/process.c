/* The process of a VM, from its options to its exit code. */
#include "tools/process.h"

#include "replicator/uri.h"
#include "tools/notify.h"
#include "tools/protection.h"
#include "tools/sandbox.h"
#include "tools/vm_fence.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Is what stands there a file, and in it a process id, or nothing? */
static bool holds_pid(int fd)
{
    char text[32];
    struct stat st;
    ssize_t n = pread(fd, text, sizeof(text), 0);
    bool pid = n >= 0 && n < (ssize_t)sizeof(text) && fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    for (ssize_t i = 0; pid && i < n; i++)
        pid = isdigit((unsigned char)text[i]) || (text[i] == '\n' && i + 1 == n);
    return pid;
}

/* *ours: whether it is ours to remove, whatever is returned. */
static int pidfile_write(const char *path, bool *ours, struct rp_error *err)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        return rp_error_exit(err, RP_EXIT_USAGE, errno, "--pidfile %s: %s", path, strerror(errno));
    if (!holds_pid(fd)) {
        close(fd);
        return rp_error_exit(err, RP_EXIT_USAGE, EEXIST, "--pidfile %s: is there and is no file with a process id; it is left alone, give another path", path);
    }
    *ours = true;
    int rc = ftruncate(fd, 0) < 0 ? rp_error_set(err, errno, "--pidfile %s: %s", path, strerror(errno)) :
         dprintf(fd, "%d\n", (int)getpid()) < 0 ? rp_error_set(err, errno, "--pidfile %s: %s", path, strerror(errno)) : 0;
    close(fd);
    return rc;
}

/* What is opened again for a machine that comes back has to have a name. */
static bool has_descriptors(const struct rp_machine_config *m)
{
    bool any = false;
    for (unsigned i = 0; i < m->ndisks; i++)
        any |= !m->disks[i].path;
    for (unsigned i = 0; i < m->nnics; i++)
        any |= m->nics[i].kind == RP_NIC_FD;
    return any;
}

/* What is only about a standby or a lease is no good without one. */
static int check_pair(const struct rp_pair_options *p, struct rp_error *err)
{
    const char *alone = p->epoch_ns ? "--epoch" : p->latency_ns ? "--latency" : p->cpu_percent ? "--cpu" : p->bandwidth_bytes_s ? "--bandwidth" :
                        p->capture ? "--capture" : p->pause_on_loss ? "--on-loss" : NULL;
    if (p->lease_ttl_ns && !p->lease)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--lease-ttl needs --lease, which it is about");
    if (p->key_path && !p->protect && !p->listen)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--key needs --protect or --listen: without them nobody is spoken to");
    if (alone && !p->protect)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "%s needs --protect; to protect the VM later, give it to `reprise protect`", alone);
    return 0;
}

int rp_process_check(const struct rp_vm_options *o, struct rp_error *err)
{
    struct rp_uri uri;
    if (!o->machine.kernel && (o->machine.initrd || o->machine.cmdline))
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "%s needs --kernel, the kernel that a reset boots; give it, or leave both out",
                             o->machine.initrd ? "--initrd" : "--append");
    int rc = check_pair(&o->pair, err);
    if (rc < 0)
        return rc;
    if (o->pair.protect && rp_uri_parse(o->pair.protect, &uri, err) < 0)
        return rp_error_wrap(err, "--protect");
    if (o->pair.protect && !o->pair.lease)
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--protect needs --lease: file:DIRECTORY, etcd:HOST:PORT, or none");
    if (o->pair.stays && (!o->pair.lease || !o->pair.listen))
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--then standby needs --listen, where the next primary reaches this process, and --lease");
    if (o->pair.stays && has_descriptors(&o->machine))
        return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "--then standby: a disk or an interface that was passed in as a descriptor cannot be "
                             "opened again; name it");
    return 0;
}

/* The lease comes first: a VM that runs elsewhere is not even made. A standby takes it when its time has come. */
static int take_lease(struct rp_vm *vm, const struct rp_vm_options *o, struct rp_error *err)
{
    int rc = rp_vm_fence_open(vm, o->pair.lease, o->pair.lease_ttl_ns, err);
    return rc == 0 && !o->pair.waits ? rp_vm_fence_take(vm, err) : rc;
}

static int start(struct rp_vm *vm, const struct rp_vm_options *o, struct rp_error *err)
{
    if (vm->fence)
        rp_fence_bind(vm->fence, vm->machine);
    /* Who starts a VM wants it to run, whatever it did when it was cut. */
    int rc = (o->paused ? rp_machine_pause : rp_machine_resume)(vm->machine, RP_PAUSE_USER, err);
    if (rc == 0)
        rc = rp_machine_start(vm->machine, err);
    if (rc == 0 && o->pair.protect)
        rc = rp_protection_start(vm, &o->pair, true, err);
    return rc;
}

/* The machine is there; from here on it may run. */
static int go(struct rp_vm *vm, const struct rp_vm_options *o, struct rp_error *err)
{
    int rc = rp_sandbox_enter(o->sandbox, o->pair.waits || o->pair.stays, err);
    if (rc == 0)
        rc = rp_vm_serve(vm, err);
    if (rc == 0 && vm->machine)
        rc = start(vm, o, err);
    if (rc < 0)
        return rc;
    rp_notify(!vm->machine ? "READY=1\nSTATUS=waiting" : o->paused ? "READY=1\nSTATUS=paused" : "READY=1\nSTATUS=running");
    rc = rp_vm_loop(vm, err);
    rp_notify("STOPPING=1");
    return rc;
}

int rp_process_run(struct rp_vm_options *o, rp_process_make *make, void *ctx, struct rp_error *err)
{
    struct rp_vm vm;
    bool wrote = false;
    int rc = rp_process_check(o, err);
    if (rc < 0)
        return rc;
    rc = rp_vm_open(&vm, o->machine.name, o->qmp_path, err);
    vm.stop_timeout_ns = o->stop_timeout_ns;
    vm.options = o;
    if (rc == 0)
        rc = take_lease(&vm, o, err);
    if (rc == 0 && (rc = make(&vm, o, ctx, err)) < 0)
        (void)rp_vm_signalled(&vm);     /* that may be why */
    if (rc == 0 && o->pidfile)
        rc = pidfile_write(o->pidfile, &wrote, err);    /* before the sandbox closes the file system */
    if (rc == 0)
        rc = go(&vm, o, err);
    if (rc < 0 && vm.leaving)
        rc = vm.leave_why.code ? rc : vm.leave_code;    /* a signal, before there was a machine */
    rp_vm_close(&vm);
    if (wrote)
        unlink(o->pidfile);
    return rc;
}

/* vCPU threads; see vcpu.h. */
#include "vmm/vcpu.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/thread.h"
#include "vmm/vcpu_state.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KICK_SIGNAL SIGRTMIN
#define THROTTLE_PERIOD_NS 10000000u
#define WATCH_NS 500000u        /* a thread watches for another before it sleeps */
#define LOOKS 256u              /* some 10 us */

static void kick_handler(int sig)
{
    (void)sig;      /* its arrival is all that is wanted: KVM_RUN returns -EINTR */
}

static void set_immediate_exit(struct rp_vcpu *v, uint8_t on)
{
    /* Read by the kernel on KVM_RUN's entry; a kick that finds the thread on its way in is not lost. */
    __atomic_store_n(&v->run->immediate_exit, on, __ATOMIC_SEQ_CST);
}

/* --- exits --- */

static void serve_io(struct rp_vcpu *v)
{
    struct kvm_run *r = v->run;
    uint8_t *data = (uint8_t *)r + r->io.data_offset;

    rp_loop_lock(v->gang->cfg.loop);
    for (uint32_t i = 0; i < r->io.count; i++, data += r->io.size)
        rp_bus_access(v->gang->cfg.pio, r->io.port, data, r->io.size, r->io.direction == KVM_EXIT_IO_OUT);
    rp_loop_unlock(v->gang->cfg.loop);
}

static void serve_mmio(struct rp_vcpu *v)
{
    struct kvm_run *r = v->run;

    rp_loop_lock(v->gang->cfg.loop);
    rp_bus_access(v->gang->cfg.mmio, r->mmio.phys_addr, r->mmio.data, r->mmio.len, r->mmio.is_write);
    rp_loop_unlock(v->gang->cfg.loop);
}

static void end(struct rp_vcpu *v)
{
    pthread_mutex_lock(&v->gang->lock);
    v->ended = true;
    pthread_mutex_unlock(&v->gang->lock);
}

static void fail(struct rp_vcpu *v, const char *what)
{
    struct kvm_regs regs = {0};
    char text[160];

    (void)ioctl(v->fd, KVM_GET_REGS, &regs);
    snprintf(text, sizeof text, "vcpu %u at rip 0x%" PRIx64 ": %s", v->index, (uint64_t)regs.rip, what);
    end(v);
    v->gang->cfg.ops.failed(v->gang->cfg.ops.ctx, v->index, text);
}

static void fail_internal(struct rp_vcpu *v)
{
    char text[96];

    if (v->run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
        snprintf(text, sizeof text, "KVM cannot emulate the instruction");
    else
        snprintf(text, sizeof text, "KVM internal error %u", v->run->internal.suberror);
    fail(v, text);
}

/* A triple fault starts the guest anew and leaves nothing else behind: where it was is for whoever looks for the reason.
 * (On AMD, KVM has reset the vCPU before it says so: there it is the reset vector.) */
static void tell_fault(const struct rp_vcpu *v)
{
    struct kvm_regs r;
    struct kvm_sregs s;

    if (ioctl(v->fd, KVM_GET_REGS, &r) < 0 || ioctl(v->fd, KVM_GET_SREGS, &s) < 0)
        return;
    rp_log(RP_LOG_WARN, "vCPU %u: triple fault at 0x%llx (cs 0x%x, rsp 0x%llx, rflags 0x%llx, cr0 0x%llx, cr2 0x%llx, cr3 0x%llx, cr4 0x%llx, "
           "efer 0x%llx, idt 0x%llx)", v->index, r.rip, s.cs.selector, r.rsp, r.rflags, s.cr0, s.cr2, s.cr3, s.cr4, s.efer, s.idt.base);
}

/* Serves one exit. False: this vCPU does not go on (now). */
static bool serve(struct rp_vcpu *v)
{
    char text[96];

    switch (v->run->exit_reason) {
    case KVM_EXIT_IO:
        serve_io(v);
        return true;
    case KVM_EXIT_MMIO:
        serve_mmio(v);
        return true;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        return true;
    case KVM_EXIT_DIRTY_RING_FULL:
        v->gang->cfg.ops.ring_full(v->gang->cfg.ops.ctx, v->index);
        return true;
    case KVM_EXIT_SHUTDOWN:
        tell_fault(v);
        end(v);
        v->gang->cfg.ops.shutdown(v->gang->cfg.ops.ctx, v->index);
        return false;
    case KVM_EXIT_INTERNAL_ERROR:
        fail_internal(v);
        return false;
    case KVM_EXIT_FAIL_ENTRY:
        snprintf(text, sizeof text, "KVM cannot enter the guest (hardware reason 0x%" PRIx64 ")",
                 (uint64_t)v->run->fail_entry.hardware_entry_failure_reason);
        fail(v, text);
        return false;
    default:
        snprintf(text, sizeof text, "KVM exit reason %u is not served", v->run->exit_reason);
        fail(v, text);
        return false;
    }
}

/* Until it is kicked or ended. KVM completes the last exit before it looks for a kick; an exit that takes several (a string or wide MMIO
 * access) comes back for each. */
static void run_guest(struct rp_vcpu *v)
{
    char text[96];

    for (;;) {
        if (ioctl(v->fd, KVM_RUN, 0) == 0) {
            if (!serve(v))
                return;
        } else if (errno == EINTR || errno == EAGAIN) {
            return;
        } else {
            snprintf(text, sizeof text, "KVM_RUN: %s", strerror(errno));
            fail(v, text);
            return;
        }
    }
}

/* --- the gang --- */

/* Between two looks; false: the moment is over. Whoever is watched for may want this very CPU: now and then it can have it. */
static bool look_again(unsigned *looks, uint64_t until_ns)
{
    __builtin_ia32_pause();
    if (++*looks % LOOKS == 0)
        sched_yield();
    return rp_clock_ns() < until_ns;
}

/* Until all vCPUs count. Gang lock held; given up meanwhile. */
static void await_all(struct rp_vcpus *g, const _Atomic unsigned *count)
{
    uint64_t until = rp_clock_ns() + WATCH_NS;
    unsigned looks = 0;

    if (g->watch && atomic_load(count) < g->n) {
        pthread_mutex_unlock(&g->lock);
        while (atomic_load_explicit(count, memory_order_acquire) < g->n && look_again(&looks, until))
            ;
        pthread_mutex_lock(&g->lock);
    }
    while (atomic_load(count) < g->n)
        pthread_cond_wait(&g->still, &g->lock);
}

/* Until there is something to do, a moment at most. Likewise. */
static void watch(struct rp_vcpu *v)
{
    struct rp_vcpus *g = v->gang;
    bool saved = v->saved;
    uint64_t until = rp_clock_ns() + WATCH_NS;
    unsigned looks = 0;

    pthread_mutex_unlock(&g->lock);
    while (atomic_load_explicit(&g->want, memory_order_acquire) == RP_GANG_HOLD &&
           (saved || !atomic_load_explicit(&g->save, memory_order_acquire)) && look_again(&looks, until))
        ;
    pthread_mutex_lock(&g->lock);
}

static void count_in(struct rp_vcpus *g, bool *is, _Atomic unsigned *count)
{
    if (*is)
        return;
    *is = true;
    if (atomic_fetch_add(count, 1) + 1 == g->n)
        pthread_cond_signal(&g->still);
}

static void save_own(struct rp_vcpu *v)
{
    v->save_rc = rp_vcpu_save_own(v, v->state, &v->save_error);
}

static void save_sent(struct rp_vcpu *v)
{
    int rc;

    for (unsigned i = 0; (rc = v->save_rc) == 0 && (rc = rp_vcpu_save_sent(v, v->state, &v->save_error)) > 0 && i < 3; i++)
        save_own(v);            /* INIT, SIPI */
    v->save_rc = rc > 0 ? rp_error_set(&v->save_error, EBUSY, "vcpu %u: its state does not hold still", v->index) : rc;
}

/* Takes the vCPU's state, as far as that goes yet. Gang lock held; given up meanwhile. */
static void save(struct rp_vcpu *v)
{
    struct rp_vcpus *g = v->gang;
    bool all = g->save, own = v->own_saved;

    g->saving++;
    pthread_mutex_unlock(&g->lock);
    if (!own)
        save_own(v);
    if (all)
        save_sent(v);
    pthread_mutex_lock(&g->lock);
    v->own_saved = true;
    if (--g->saving == 0)
        pthread_cond_signal(&g->still);
    if (all)
        count_in(g, &v->saved, &g->nsaved);
}

/* Waits outside of the guest until it may go on; false: quit. Gang lock held on entry and exit. */
static bool wait_outside(struct rp_vcpu *v)
{
    struct rp_vcpus *g = v->gang;
    bool watched = false;

    for (;;) {
        bool held = g->want != RP_GANG_GO || v->ended;
        bool nap = !held && g->nap_until_ns > rp_clock_ns();
        if (g->want == RP_GANG_QUIT)
            return false;
        if (!held && !nap)
            return true;
        count_in(g, &v->still, &g->nstill);
        if (held && ((g->save && !v->saved) || (g->brief && !v->own_saved))) {
            save(v);
            watched = false;
        } else if (g->brief && g->watch && !watched) {
            watch(v);
            watched = true;
        } else if (nap) {
            rp_cond_wait_until(&g->go, &g->lock, g->nap_until_ns);
        } else {
            pthread_cond_wait(&g->go, &g->lock);
        }
    }
}

static bool next_run(struct rp_vcpu *v)
{
    struct rp_vcpus *g = v->gang;
    bool on;

    pthread_mutex_lock(&g->lock);
    on = wait_outside(v);
    if (v->still)
        atomic_fetch_sub(&g->nstill, 1);
    v->still = false;
    if (on)
        set_immediate_exit(v, 0);
    pthread_mutex_unlock(&g->lock);
    return on;
}

static void *vcpu_main(void *arg)
{
    struct rp_vcpu *v = arg;
    sigset_t kick;

    sigemptyset(&kick);
    sigaddset(&kick, KICK_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
    atomic_store(&v->tid, (int)syscall(SYS_gettid));
    atomic_store(&v->stat_fd, open("/proc/thread-self/stat", O_RDONLY | O_CLOEXEC));
    while (next_run(v))
        run_guest(v);
    return NULL;
}

static int make_vcpu(struct rp_vcpus *g, unsigned i, struct rp_error *err)
{
    struct rp_vcpu *v = &g->v[i];
    int rc = ioctl(g->cfg.kvmfd, KVM_GET_VCPU_MMAP_SIZE, 0);

    v->gang = g;
    v->index = i;
    v->stat_fd = -1;
    v->still = true;
    v->run_bytes = rc > 0 ? (size_t)rc : 0;
    v->state = calloc(1, sizeof *v->state);
    if (!v->state)
        return rp_error_set(err, ENOMEM, "vcpu %u: out of memory", i);
    v->fd = ioctl(g->cfg.vmfd, KVM_CREATE_VCPU, i);
    if (v->fd < 0)
        return rp_error_exit(err, RP_EXIT_HOST, errno, "KVM_CREATE_VCPU %u: %m", i);
    v->run = mmap(NULL, v->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
    if (v->run == MAP_FAILED) {
        v->run = NULL;
        return rp_error_exit(err, RP_EXIT_HOST, errno, "vcpu %u: mapping its run page: %m", i);
    }
    return 0;
}

static void install_kick(void)
{
    struct sigaction sa = {.sa_handler = kick_handler};

    sigemptyset(&sa.sa_mask);
    sigaction(KICK_SIGNAL, &sa, NULL);
}

static unsigned cpus_allowed(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof set, &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
}

int rp_vcpus_create(const struct rp_vcpus_config *cfg, struct rp_vcpus **out, struct rp_error *err)
{
    struct rp_vcpus *g = calloc(1, sizeof *g);
    pthread_mutexattr_t adaptive;
    int rc, have;

    if (!g)
        return rp_error_set(err, ENOMEM, "vcpus: out of memory");
    g->cfg = *cfg;
    g->n = cfg->n;
    g->nstill = cfg->n;
    g->watch = cpus_allowed() > cfg->n;
    g->want = RP_GANG_HOLD;
    pthread_mutexattr_init(&adaptive);
    pthread_mutexattr_settype(&adaptive, PTHREAD_MUTEX_ADAPTIVE_NP);   /* held for moments: not to be slept for */
    pthread_mutex_init(&g->lock, &adaptive);
    pthread_mutexattr_destroy(&adaptive);
    pthread_cond_init(&g->go, NULL);
    pthread_cond_init(&g->still, NULL);
    for (unsigned i = 0; i < RP_VCPU_GANG_MAX; i++)
        g->v[i].fd = -1;
    install_kick();
    have = ioctl(cfg->vmfd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
    g->xsave_bytes = have > 4096 ? (uint32_t)have : 4096;
    for (unsigned i = 0; i < cfg->n; i++) {
        rc = make_vcpu(g, i, err);
        if (rc < 0) {
            rp_vcpus_destroy(g);
            return rc;
        }
    }
    *out = g;
    return 0;
}

static void stop_ticker(struct rp_vcpus *g)
{
    if (!g->ticking)
        return;
    atomic_store(&g->stop_ticking, true);
    pthread_join(g->ticker, NULL);
    g->ticking = false;
}

void rp_vcpus_destroy(struct rp_vcpus *g)
{
    if (!g)
        return;
    stop_ticker(g);
    rp_vcpus_hold(g, false);
    pthread_mutex_lock(&g->lock);
    g->want = RP_GANG_QUIT;
    pthread_cond_broadcast(&g->go);
    pthread_mutex_unlock(&g->lock);
    for (unsigned i = 0; i < g->n; i++)
        if (g->v[i].started)
            pthread_join(g->v[i].thread, NULL);
    for (unsigned i = 0; i < g->n; i++) {
        if (g->v[i].run)
            munmap(g->v[i].run, g->v[i].run_bytes);
        if (g->v[i].fd >= 0)
            close(g->v[i].fd);
        if (g->v[i].stat_fd >= 0)
            close(g->v[i].stat_fd);
        free(g->v[i].state);
    }
    rp_msr_list_free(g->msrs);
    pthread_cond_destroy(&g->still);
    pthread_cond_destroy(&g->go);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

int rp_vcpus_start(struct rp_vcpus *g, struct rp_error *err)
{
    int rc = 0;

    for (unsigned i = 0; i < g->n && rc == 0; i++) {
        char name[16];

        if (g->v[i].started)
            continue;
        snprintf(name, sizeof name, "vcpu %u", i);
        rc = rp_thread_start(&g->v[i].thread, name, vcpu_main, &g->v[i], err);
        g->v[i].started = rc == 0;
    }
    return rc;
}

void rp_vcpus_go(struct rp_vcpus *g)
{
    pthread_mutex_lock(&g->lock);
    g->want = RP_GANG_GO;
    g->save = g->brief = false;
    pthread_cond_broadcast(&g->go);
    pthread_mutex_unlock(&g->lock);
}

/* Gang lock held. */
static void kick_all(struct rp_vcpus *g)
{
    for (unsigned i = 0; i < g->n; i++)
        if (g->v[i].started && !g->v[i].still) {
            set_immediate_exit(&g->v[i], 1);
            pthread_kill(g->v[i].thread, KICK_SIGNAL);
        }
}

void rp_vcpus_hold(struct rp_vcpus *g, bool brief)
{
    pthread_mutex_lock(&g->lock);
    g->want = RP_GANG_HOLD;
    g->save = false;
    while (g->saving)           /* for a cut that was given up */
        pthread_cond_wait(&g->still, &g->lock);
    for (unsigned i = 0; i < g->n; i++)
        g->v[i].saved = g->v[i].own_saved = false;
    g->nsaved = 0;
    g->brief = brief;
    kick_all(g);
    await_all(g, &g->nstill);
    pthread_mutex_unlock(&g->lock);
}

void rp_vcpus_save(struct rp_vcpus *g)
{
    pthread_mutex_lock(&g->lock);
    g->save = true;
    pthread_cond_broadcast(&g->go);
    for (unsigned i = 0; i < g->n; i++)
        if (!g->v[i].started)           /* it has no thread yet */
            save(&g->v[i]);
    pthread_mutex_unlock(&g->lock);
}

int rp_vcpus_collect(struct rp_vcpus *g, struct rp_error *err)
{
    int rc = 0;

    pthread_mutex_lock(&g->lock);
    await_all(g, &g->nsaved);
    g->save = false;
    for (unsigned i = 0; i < g->n && rc == 0; i++) {
        rc = g->v[i].save_rc;
        if (rc < 0 && err)
            *err = g->v[i].save_error;
    }
    pthread_mutex_unlock(&g->lock);
    return rc;
}

void rp_vcpus_revive(struct rp_vcpus *g)
{
    pthread_mutex_lock(&g->lock);
    for (unsigned i = 0; i < g->n; i++)
        g->v[i].ended = false;
    pthread_mutex_unlock(&g->lock);
}

/* --- throttle: every 10 ms all vCPUs nap for their percentage of it --- */

static void *ticker_main(void *arg)
{
    struct rp_vcpus *g = arg;
    struct timespec period = {.tv_nsec = THROTTLE_PERIOD_NS};

    while (!atomic_load(&g->stop_ticking)) {
        pthread_mutex_lock(&g->lock);
        g->nap_until_ns = rp_clock_ns() + (uint64_t)THROTTLE_PERIOD_NS * g->throttle / 100;
        if (g->want == RP_GANG_GO)
            kick_all(g);
        pthread_mutex_unlock(&g->lock);
        nanosleep(&period, NULL);
    }
    pthread_mutex_lock(&g->lock);
    g->nap_until_ns = 0;
    pthread_cond_broadcast(&g->go);
    pthread_mutex_unlock(&g->lock);
    return NULL;
}

int rp_vcpus_throttle(struct rp_vcpus *g, unsigned percent, struct rp_error *err)
{
    int rc;

    if (percent == 0) {
        stop_ticker(g);
        return 0;
    }
    pthread_mutex_lock(&g->lock);
    g->throttle = percent > 99 ? 99 : percent;
    pthread_mutex_unlock(&g->lock);
    if (g->ticking)
        return 0;
    atomic_store(&g->stop_ticking, false);
    rc = rp_thread_start(&g->ticker, "throttle", ticker_main, g, err);
    g->ticking = rc == 0;
    return rc;
}

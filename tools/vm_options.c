#include "tools/vm_options.h"

#include "tools/runtime.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY_MAX (64ull << 30)

const struct rp_vm_options rp_vm_options_defaults = {
    .machine = {
        .vcpus = 1,
        .ram = {.size_bytes = 512ull << 20, .thp = true},
        .serial = {.kind = RP_SERIAL_NULL},
        .rng = true,
        .balloon = true,
        .wall_clock_follows = true,
    },
    .stop_timeout_ns = 10000000000u,
    .sandbox = RP_SANDBOX_ON,
    .pair = {.heartbeat_ns = 20000000u, .lanes = 1},
};

static int bad(struct rp_error *err, const char *fmt, ...) RP_PRINTF(2, 3);
static int bad(struct rp_error *err, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return rp_error_exit(err, RP_EXIT_USAGE, EINVAL, "%s", text);
}

/* --- words: a first one, then flags and key=value, separated by commas; ",," stands for a comma --- */

/* Takes the next word off *rest, unescaped in place; NULL at the end. */
static char *next_word(char **rest)
{
    char *word = *rest, *out = word, *in = word;
    if (!word)
        return NULL;
    for (;; in++) {
        if (*in == ',' && in[1] == ',')
            in++;
        else if (*in == ',' || *in == '\0')
            break;
        *out++ = *in;
    }
    *rest = *in ? in + 1 : NULL;
    *out = '\0';
    return word;
}

static const char *value_of(const char *word, const char *key)
{
    size_t n = strlen(key);
    return strncmp(word, key, n) == 0 && word[n] == '=' ? word + n + 1 : NULL;
}

static int parse_queues(const char *what, const char *text, unsigned max, unsigned *out, struct rp_error *err)
{
    uint64_t n = 0;
    int rc = rp_parse_uint(what, text, 1, max, &n, err);
    if (rc == 0)
        *out = (unsigned)n;
    return rc;
}

/* A descriptor that this process was handed. */
static int parse_fd(const char *what, const char *text, int *fd, struct rp_error *err)
{
    uint64_t n = 0;
    int rc = rp_parse_uint(what, text, 0, 1u << 20, &n, err);
    if (rc)
        return rc;
    if (fcntl((int)n, F_GETFD) < 0)
        return bad(err, "%s%s: this descriptor is not open; whoever starts reprise has to pass it on", what, text);
    *fd = (int)n;
    return 0;
}

static int disk_word(struct rp_disk_config *d, const char *word, struct rp_error *err)
{
    const char *v;
    if (strcmp(word, "ro") == 0) {
        d->readonly = true;
        return 0;
    }
    if (strcmp(word, "shared") == 0 || strcmp(word, "take") == 0 || strcmp(word, "overwrite") == 0) {
        *(word[0] == 's' ? &d->shared : word[0] == 't' ? &d->take : &d->overwrite) = true;
        return 0;
    }
    if ((v = value_of(word, "state")) && v[0]) {
        d->state = v;
        return 0;
    }
    if ((v = value_of(word, "queues")))
        return parse_queues("--disk: queues", v, 16, &d->queues, err);
    if (!(v = value_of(word, "serial")))
        return bad(err, "--disk: \"%s\" means nothing here; a disk is F[,ro][,shared][,serial=S][,queues=N][,state=F][,take][,overwrite], a "
                   "comma in F is written twice", word);
    if (!v[0] || strlen(v) >= sizeof(d->serial))
        return bad(err, "--disk: serial \"%s\": it has 1 to %zu characters", v, sizeof(d->serial) - 1);
    snprintf(d->serial, sizeof(d->serial), "%s", v);
    return 0;
}

int rp_parse_disk(void *machine_config, char *text, struct rp_error *err)
{
    struct rp_machine_config *m = machine_config;
    struct rp_disk_config d = {.fd = -1};
    if (m->ndisks == RP_DISKS_MAX)
        return bad(err, "--disk %s: one too many; a VM can have %d disks", text, RP_DISKS_MAX);
    char *rest = text, *word = next_word(&rest);
    if (!word[0])
        return bad(err, "--disk: the file's name is missing");
    int rc = 0;
    if (strncmp(word, "fd:", 3) == 0)
        rc = parse_fd("--disk fd:", word + 3, &d.fd, err);
    else
        d.path = word;
    while (rc == 0 && (word = next_word(&rest)))
        rc = disk_word(&d, word, err);
    if (rc == 0)
        m->disks[m->ndisks++] = d;
    return rc;
}

/* What the card is plugged into. */
static int net_kind(struct rp_nic_config *n, const char *word, struct rp_error *err)
{
    if (strncmp(word, "fd:", 3) == 0) {
        n->kind = RP_NIC_FD;
        return parse_fd("--net fd:", word + 3, &n->fd, err);
    }
    bool tap = strncmp(word, "tap:", 4) == 0, local = strncmp(word, "unix:", 5) == 0;
    n->kind = tap ? RP_NIC_TAP : RP_NIC_UNIX;
    n->name = word + (tap ? 4 : 5);
    if ((!tap && !local) || !n->name[0])
        return bad(err, "--net \"%s\": not one of tap:INTERFACE, unix:PATH, fd:N", word);
    return 0;
}

int rp_parse_net(void *machine_config, char *text, struct rp_error *err)
{
    struct rp_machine_config *m = machine_config;
    struct rp_nic_config n = {.fd = -1};
    if (m->nnics == RP_NICS_MAX)
        return bad(err, "--net %s: one too many; a VM can have %d network cards", text, RP_NICS_MAX);
    char *rest = text, *word = next_word(&rest);
    int rc = net_kind(&n, word, err);
    while (rc == 0 && (word = next_word(&rest))) {
        const char *v;
        if ((v = value_of(word, "mac"))) {
            rc = rp_parse_mac("--net: mac", v, n.mac, err);
            n.has_mac = true;
        } else if ((v = value_of(word, "queues"))) {
            rc = parse_queues("--net: queues", v, 8, &n.queues, err);
        } else {
            rc = bad(err, "--net: \"%s\" means nothing here; a card is tap:IF|unix:PATH|fd:N[,mac=M][,queues=N]", word);
        }
    }
    if (rc == 0)
        m->nics[m->nnics++] = n;
    return rc;
}

int rp_parse_chardev(void *chardev_config, char *text, struct rp_error *err)
{
    struct rp_chardev_config *c = chardev_config;
    if (strcmp(text, "null") == 0)
        *c = (struct rp_chardev_config){RP_SERIAL_NULL, NULL};
    else if (strcmp(text, "stdio") == 0)
        *c = (struct rp_chardev_config){RP_SERIAL_STDIO, NULL};
    else if (strncmp(text, "file:", 5) == 0 && text[5])
        *c = (struct rp_chardev_config){RP_SERIAL_FILE, text + 5};
    else if (strncmp(text, "unix:", 5) == 0 && text[5])
        *c = (struct rp_chardev_config){RP_SERIAL_UNIX, text + 5};
    else
        return bad(err, "--serial or --console \"%s\": not one of stdio, null, file:F, unix:F", text);
    return 0;
}

/* --- parsers of single options --- */

static int parse_name(void *field, char *value, struct rp_error *err)
{
    int rc = rp_runtime_name_check(value, err);
    if (rc < 0)
        return rp_error_wrap(err, "--name");
    snprintf(field, RP_VM_NAME_MAX, "%s", value);
    return 0;
}

static int parse_console(void *field, char *value, struct rp_error *err)
{
    struct rp_machine_config *m = field;
    m->has_console = true;
    return rp_parse_chardev(&m->console, value, err);
}

static int parse_memory(void *field, char *value, struct rp_error *err)
{
    uint64_t bytes = 0;
    int rc = rp_parse_size("--memory", value, &bytes, err);
    if (rc)
        return rc;
    if (bytes < (2u << 20) || bytes > MEMORY_MAX || bytes % RP_PAGE_SIZE)
        return bad(err, "--memory %s: out of range; a VM has 2M to 64G, in whole pages of 4,096 bytes", value);
    *(uint64_t *)field = bytes;
    return 0;
}

static int parse_uuid(void *field, char *value, struct rp_error *err)
{
    uint8_t id[16];
    unsigned n = 0;
    const char *p = value;
    for (; *p && n < 32; p++) {
        if (*p == '-' && p != value)
            continue;
        if (!isxdigit((unsigned char)*p))
            break;
        unsigned digit = isdigit((unsigned char)*p) ? (unsigned)(*p - '0') : (unsigned)(tolower((unsigned char)*p) - 'a' + 10);
        id[n / 2] = (uint8_t)(n % 2 ? id[n / 2] | digit : digit << 4);
        n++;
    }
    if (n != 32 || *p)
        return bad(err, "--uuid \"%s\": not a UUID such as 123e4567-e89b-42d3-a456-426614174000", value);
    memcpy(field, id, sizeof(id));
    return 0;
}

/* One of the words of a list; its index. */
static int parse_choice(const char *what, const char *value, const char *const *words, unsigned *out, struct rp_error *err)
{
    char list[80] = "";
    for (unsigned i = 0; words[i]; i++) {
        if (strcmp(words[i], value) == 0) {
            *out = i;
            return 0;
        }
        snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s%s", i ? ", " : "", words[i]);
    }
    return bad(err, "%s \"%s\": not one of %s", what, value, list);
}

static int parse_vsock(void *field, char *value, struct rp_error *err)
{
    struct rp_vsock_config *v = field;
    char *cid = strstr(value, ",cid="), *rest = NULL;
    unsigned long n = 3;

    if (cid) {
        *cid = 0;
        n = strtoul(cid + 5, &rest, 10);
        if (!isdigit((unsigned char)cid[5]) || *rest || n < 3 || n >= UINT32_MAX)
            return bad(err, "--vsock: cid \"%s\": a guest's address is a number from 3 to 4294967294", cid + 5);
    }
    if (!*value || strchr(value, ','))
        return bad(err, "--vsock \"%s\": not PATH or PATH,cid=N", value);
    *v = (struct rp_vsock_config){.cid = (uint32_t)n, .path = value};
    return 0;
}

static int parse_dirty(void *field, char *value, struct rp_error *err)
{
    static const char *const words[] = {[RP_DIRTY_AUTO] = "auto", [RP_DIRTY_LOG] = "log", [RP_DIRTY_RING] = "ring", NULL};
    unsigned i = 0;
    int rc = parse_choice("--dirty", value, words, &i, err);
    struct rp_machine_config *m = field;
    m->dirty = rc == 0 ? i : m->dirty;
    return rc;
}

static int parse_sandbox(void *field, char *value, struct rp_error *err)
{
    static const char *const words[] = {[RP_SANDBOX_OFF] = "off", [RP_SANDBOX_LOG] = "log", [RP_SANDBOX_ON] = "on", NULL};
    unsigned i = 0;
    int rc = parse_choice("--sandbox", value, words, &i, err);
    if (rc == 0)
        *(enum rp_sandbox_mode *)field = i;
    return rc;
}

static int parse_onoff(const char *what, bool *field, const char *value, struct rp_error *err)
{
    static const char *const words[] = {"off", "on", NULL};
    unsigned i = 0;
    int rc = parse_choice(what, value, words, &i, err);
    if (rc == 0)
        *field = i == 1;
    return rc;
}

static int parse_thp(void *field, char *value, struct rp_error *err) { return parse_onoff("--thp", field, value, err); }
static int parse_rng(void *field, char *value, struct rp_error *err) { return parse_onoff("--rng", field, value, err); }
static int parse_balloon(void *field, char *value, struct rp_error *err) { return parse_onoff("--balloon", field, value, err); }

static int parse_wall_clock(void *field, char *value, struct rp_error *err)
{
    static const char *const words[] = {"guest", "host", NULL};
    unsigned i = 0;
    int rc = parse_choice("--wall-clock", value, words, &i, err);
    if (rc == 0)
        *(bool *)field = i == 1;
    return rc;
}

#define AT(member) .offset = offsetof(struct rp_vm_options, member)

const struct rp_opt rp_vm_host_options[RP_VM_HOST_OPTIONS] = {
    {.name = "name", .arg = "N", .kind = RP_OPT_PARSE, AT(machine.name), .parse = parse_name,
     .help = "The VM's name: letters, digits, '.', '_', '-'. The other verbs find the VM by it."},
    {.name = "disk", .arg = "F[,ro][,shared][,serial=S][,queues=N][,state=F][,take][,overwrite]", .kind = RP_OPT_PARSE, .repeats = true, AT(machine), .parse = rp_parse_disk,
     .help = "A disk: a raw file, a block device, nbd://HOST/EXPORT, or fd:N, a descriptor passed in. A comma in F is written twice. Of a "
             "protected VM each host has its own copy; shared: both hosts reach the same storage (nbd is that always). What is known of a copy is "
             "kept in F.reprise, or where state says; take: use it although its VM may have gone on elsewhere. A standby takes a file that is not there, "
             "is empty, or is a copy already; overwrite: whatever F holds, it becomes the copy."},
    {.name = "net", .arg = "tap:IF|unix:PATH|fd:N[,mac=M][,queues=N]", .kind = RP_OPT_PARSE, .repeats = true, AT(machine),
     .parse = rp_parse_net,
     .help = "A network card on a tap interface, on a unix stream socket (the framing of QEMU's -netdev stream and of passt), or on a "
             "descriptor of either that was passed in."},
    {.name = "serial", .arg = "stdio|null|file:F|unix:F", .kind = RP_OPT_PARSE, AT(machine.serial), .parse = rp_parse_chardev,
     .help = "Where the serial port goes; null unless given. On a terminal, Ctrl-a x ends the VM as SIGTERM does, "
             "Ctrl-a Ctrl-a sends a Ctrl-a."},
    {.name = "console", .arg = "stdio|null|file:F|unix:F", .kind = RP_OPT_PARSE, AT(machine), .parse = parse_console,
     .help = "A virtio console, and where it goes."},
    {.name = "vsock", .arg = "PATH[,cid=N]", .kind = RP_OPT_PARSE, AT(machine.vsock), .parse = parse_vsock,
     .help = "A virtio socket device. The host connects to the unix socket PATH and says \"CONNECT port\"; the guest's connections to "
             "CID 2, port N, go to PATH_N. cid is the guest's, 3 unless given."},
    {.name = "qmp", .arg = "PATH", .kind = RP_OPT_STRING, AT(qmp_path),
     .help = "A further QMP socket beside the one in the runtime directory; 24 clients may be connected to it at once."},
    {.name = "paused", .kind = RP_OPT_FLAG, AT(paused), .help = "Do not run the vCPUs until `reprise resume`."},
    {.name = "populate", .kind = RP_OPT_FLAG, AT(machine.ram.populate), .help = "Fault all guest memory in before the start."},
    {.name = "overcommit", .kind = RP_OPT_FLAG, AT(machine.ram.overcommit),
     .help = "Allow more guest memory than the host has, memory and swap together: for guests that give pages back (balloon)."},
    {.name = "hugepages", .kind = RP_OPT_FLAG, AT(machine.ram.hugetlb), .help = "Guest memory out of the host's reserved 2 MiB pages."},
    {.name = "thp", .arg = "on|off", .kind = RP_OPT_PARSE, AT(machine.ram.thp), .parse = parse_thp,
     .help = "Transparent huge pages for guest memory where the host allows them; on unless given."},
    {.name = "dirty", .arg = "auto|log|ring", .kind = RP_OPT_PARSE, AT(machine), .parse = parse_dirty,
     .help = "How KVM reports the pages that change; auto unless given."},
    {.name = "pidfile", .arg = "F", .kind = RP_OPT_STRING, AT(pidfile), .help = "Write the process id there once the VM is ready."},
    {.name = "stop-timeout", .arg = "DURATION", .kind = RP_OPT_DURATION, AT(stop_timeout_ns),
     .help = "SIGTERM presses the power button; after this time the VM is ended anyway. 10s unless given."},
    {.name = "sandbox", .arg = "on|log|off", .kind = RP_OPT_PARSE, AT(sandbox), .parse = parse_sandbox,
     .help = "After its setup the process gives up every system call that it does not need; log: only note what would be refused."},
};

const struct rp_opt rp_vm_guest_options[RP_VM_GUEST_OPTIONS] = {
    {.name = "memory", .arg = "SIZE", .kind = RP_OPT_PARSE, AT(machine.ram.size_bytes), .parse = parse_memory,
     .help = "Guest memory, 2M to 64G; 512M unless given."},
    {.name = "cpus", .arg = "N", .kind = RP_OPT_UINT, AT(machine.vcpus), .min = 1, .max = RP_VCPUS_MAX, .help = "vCPUs; 1 unless given."},
    {.name = "uuid", .arg = "U", .kind = RP_OPT_PARSE, AT(machine.vm_id), .parse = parse_uuid, .help = "The VM's id; random unless given."},
    {.name = "rng", .arg = "on|off", .kind = RP_OPT_PARSE, AT(machine.rng), .parse = parse_rng,
     .help = "A virtio entropy device; on unless given."},
    {.name = "balloon", .arg = "on|off", .kind = RP_OPT_PARSE, AT(machine.balloon), .parse = parse_balloon,
     .help = "A virtio balloon, which also gives freed pages back to the host; on unless given."},
};

const struct rp_opt rp_vm_kernel_options[RP_VM_KERNEL_OPTIONS] = {
    {.name = "kernel", .arg = "F", .kind = RP_OPT_STRING, AT(machine.kernel),
     .help = "The kernel to boot: a Linux bzImage, or an ELF with a PVH entry (vmlinux). A VM that goes on from an epoch needs it when it is reset: "
             "without it a reset by the guest is its end, and `reprise reset` is refused."},
    {.name = "initrd", .arg = "F", .kind = RP_OPT_STRING, AT(machine.initrd), .help = "Its initial RAM disk."},
    {.name = "append", .arg = "S", .kind = RP_OPT_STRING, .may_be_empty = true, AT(machine.cmdline), .help = "Its command line."},
};

const struct rp_opt rp_vm_enter_options[RP_VM_ENTER_OPTIONS] = {
    {.name = "wall-clock", .arg = "host|guest", .kind = RP_OPT_PARSE, AT(machine.wall_clock_follows), .parse = parse_wall_clock,
     .help = "The guest's wall clock follows the host's (host, unless given) or goes on where it stood at the cut."},
};

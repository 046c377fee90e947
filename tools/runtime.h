/*
 * runtime.h - the directory where running VMs are found: $REPRISE_RUNTIME_DIR, else $XDG_RUNTIME_DIR/reprise, else
 * /run/reprise; NAME.sock in it is the VM's QMP socket. A socket that nobody answers on is what a killed VM left
 * behind, and is replaced.
 *
 * A login has an XDG_RUNTIME_DIR, a systemd unit of the same user has none. So without a REPRISE_RUNTIME_DIR a VM is looked
 * for in both: in the directory above first, then in /run/reprise, or /run/user/UID/reprise when that was /run/reprise.
 */
#ifndef RP_TOOLS_RUNTIME_H
#define RP_TOOLS_RUNTIME_H

#include "core/error.h"

#include <stdbool.h>

#define RP_RUNTIME_PATH_MAX 108     /* sun_path, unix(7) */

/* Checks a VM's name: 1-63 of letters, digits, '-', '_' and '.', not beginning with '.' or '-'. */
int rp_runtime_name_check(const char *name, struct rp_error *err) RP_MUST_CHECK;
/* The socket's path for `name`. `create`: makes the directory (mode 0700) when it is not there. */
int rp_runtime_socket(const char *name, bool create, char path[RP_RUNTIME_PATH_MAX], struct rp_error *err) RP_MUST_CHECK;
/* A listening unix socket at `path`, mode 0600. `what`: for the sentence ("VM \"db\""). -EADDRINUSE, RP_EXIT_REFUSED:
 * somebody answers there. Two processes that ask at once do not both get it. */
int rp_runtime_listen(const char *path, const char *what, int *fd, struct rp_error *err) RP_MUST_CHECK;
/* Connects to the VM `name` (or to a socket's path, when it has a '/'). RP_EXIT_NO_VM when there is none; says where it was looked for. */
int rp_runtime_connect(const char *name, int *fd, struct rp_error *err) RP_MUST_CHECK;
/* The sockets' paths, alive or not, sorted by their VMs' names; free with rp_runtime_list_free. No directory: none. */
int rp_runtime_list(char ***paths, unsigned *n, struct rp_error *err) RP_MUST_CHECK;
void rp_runtime_list_free(char **paths, unsigned n);
/* The name in a listed path, and its length. */
const char *rp_runtime_name(const char *path, size_t *len);

#endif

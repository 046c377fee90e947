/*
 * notify.h - tells systemd how the service is (sd_notify(3)'s protocol: a datagram to $NOTIFY_SOCKET, which may be a
 * path or, beginning with '@', an abstract name). Without NOTIFY_SOCKET nothing happens. Thread: any.
 */
#ifndef RP_TOOLS_NOTIFY_H
#define RP_TOOLS_NOTIFY_H

/* `state`: lines of KEY=VALUE ("READY=1\nSTATUS=running"). What goes wrong is logged: the VM comes first. */
void rp_notify(const char *state);

#endif

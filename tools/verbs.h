/* verbs.h - the verbs of the `reprise` command; each lives in its own file, main.c has the table. */
#ifndef RP_TOOLS_VERBS_H
#define RP_TOOLS_VERBS_H

#include "tools/args.h"

extern const struct rp_verb rp_verb_help, rp_verb_status, rp_verb_run, rp_verb_restore, rp_verb_checkpoint;
extern const struct rp_verb rp_verb_doctor, rp_verb_inspect;
extern const struct rp_verb rp_verb_standby, rp_verb_protect, rp_verb_unprotect, rp_verb_failover;
extern const struct rp_verb rp_verb_history, rp_verb_explain, rp_verb_top;
extern const struct rp_verb rp_verb_pause, rp_verb_resume, rp_verb_powerdown, rp_verb_reset, rp_verb_quit;   /* control.c */

/* All verbs, ending with NULL, in the order of `reprise --help`. */
extern const struct rp_verb *const rp_verbs[];
const struct rp_verb *rp_verb_find(const char *name);

#endif

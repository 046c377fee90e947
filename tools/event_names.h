/* event_names.h - the events there are (core/event.h), for who lists them and for who explains them. tests/check/lint compares it with what is emitted. */
#ifndef RP_TOOLS_EVENT_NAMES_H
#define RP_TOOLS_EVENT_NAMES_H

/* As a line on standard error (event_lines.h). NONE: somebody says it already, or it is of no use there. */
enum rp_event_line { RP_LINE_NONE, RP_LINE_WARN, RP_LINE_NOTICE, RP_LINE_INFO };

struct rp_event_name {
    const char *name;
    const char *says;       /* how the sentence about it begins, when it is a decision; else NULL */
    enum rp_event_line line;
};
/* Constant; ends with a name that is NULL. */
extern const struct rp_event_name rp_event_names[];

#endif

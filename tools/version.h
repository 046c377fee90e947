/* version.h - what the command and its QMP greeting call themselves. */
#ifndef RP_TOOLS_VERSION_H
#define RP_TOOLS_VERSION_H

#define RP_VERSION_MAJOR 0
#define RP_VERSION_MINOR 1
#define RP_VERSION_MICRO 0
#define RP_VERSION_TEXT "0.1.0"

#endif

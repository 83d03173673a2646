#define _GNU_SOURCE
#include "CHost.h"
#include <sys/mman.h>

int roost_memfd_create(const char *name) { return memfd_create(name, MFD_CLOEXEC); }

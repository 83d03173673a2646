#define _GNU_SOURCE
#include "CHost.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/random.h>

int roost_memfd_create(const char *name) { return memfd_create(name, MFD_CLOEXEC); }
int64_t roost_random(void *buffer, size_t size) { return getrandom(buffer, size, 0); }
void roost_name_thread(const char *name) { pthread_setname_np(pthread_self(), name); }

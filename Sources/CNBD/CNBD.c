#include "CNBD.h"
#include <dlfcn.h>

int roost_nbd_load(roost_nbd *functions) {
    void *library = dlopen("libnbd.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!library) return -1;
#define FIND(name) \
    if (!(functions->name = (__typeof__(functions->name))dlsym(library, "nbd_" #name))) return -1
    FIND(create);
    FIND(close);
    FIND(get_error);
    FIND(get_errno);
    FIND(set_uri_allow_local_file);
    FIND(set_pread_initialize);
    FIND(connect_uri);
    FIND(aio_is_dead);
    FIND(aio_is_closed);
    FIND(get_size);
    FIND(get_block_size);
    FIND(is_read_only);
    FIND(can_flush);
    FIND(can_fua);
    FIND(can_trim);
    FIND(can_zero);
    FIND(can_multi_conn);
    FIND(pread);
    FIND(pwrite);
    FIND(flush);
    FIND(trim);
    FIND(zero);
    return 0;
}

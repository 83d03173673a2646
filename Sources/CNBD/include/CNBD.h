// libnbd, loaded when the first NBD disk is opened: with the libraries that it needs itself it would take a third of the
// start of each short command.
#ifndef CNBD_H
#define CNBD_H
#include <libnbd.h>

// Its functions, by their names without `nbd_`; see libnbd(3).
typedef struct {
    __typeof__(&nbd_create) create;
    __typeof__(&nbd_close) close;
    __typeof__(&nbd_get_error) get_error;
    __typeof__(&nbd_get_errno) get_errno;
    __typeof__(&nbd_set_uri_allow_local_file) set_uri_allow_local_file;
    __typeof__(&nbd_set_pread_initialize) set_pread_initialize;
    __typeof__(&nbd_connect_uri) connect_uri;
    __typeof__(&nbd_aio_is_dead) aio_is_dead;
    __typeof__(&nbd_aio_is_closed) aio_is_closed;
    __typeof__(&nbd_get_size) get_size;
    __typeof__(&nbd_get_block_size) get_block_size;
    __typeof__(&nbd_is_read_only) is_read_only;
    __typeof__(&nbd_can_flush) can_flush;
    __typeof__(&nbd_can_fua) can_fua;
    __typeof__(&nbd_can_trim) can_trim;
    __typeof__(&nbd_can_zero) can_zero;
    __typeof__(&nbd_can_multi_conn) can_multi_conn;
    __typeof__(&nbd_pread) pread;
    __typeof__(&nbd_pwrite) pwrite;
    __typeof__(&nbd_flush) flush;
    __typeof__(&nbd_trim) trim;
    __typeof__(&nbd_zero) zero;
} roost_nbd;

// Loads the library; 0 or -1 (it isn't there, or lacks a function).
int roost_nbd_load(roost_nbd *functions);

#endif

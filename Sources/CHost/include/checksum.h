// Checksums of memory pages.
#ifndef ROOST_CHECKSUM_H
#define ROOST_CHECKSUM_H
#include <stddef.h>
#include <stdint.h>

// CRC-32C (Castagnoli, reflected) of bytes after those that gave `crc`; 0 to begin with.
uint32_t roost_crc32c(uint32_t crc, const void *bytes, size_t length);

// A checksum of large files of this program's own, three times as fast: the CRC-32C of four of them, of every fourth word
// (64 bits) each. `length` is a multiple of 32.
uint32_t roost_lane_sum(const void *bytes, size_t length);

// Whether all bytes are zero; `length` is a multiple of 64, `bytes` aligned to 8.
int roost_is_zero(const void *bytes, size_t length);

#endif

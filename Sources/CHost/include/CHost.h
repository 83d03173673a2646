// C and assembly: the few things Swift cannot say.
#ifndef CHOST_H
#define CHOST_H
#include "vcpu.h"
#endif

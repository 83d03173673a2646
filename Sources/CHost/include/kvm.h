// The host's KVM: its structures as Linux declares them, its request numbers as constants, kicking a thread.
//
// - Spec: Linux Documentation/virt/kvm/api.rst.
#ifndef CHOST_KVM_H
#define CHOST_KVM_H
#include <linux/kvm.h>
#include <stdint.h>

// Swift doesn't see macros that compute: one constant for each request.
enum roost_kvm_request {
    ROOST_KVM_GET_API_VERSION = KVM_GET_API_VERSION,
    ROOST_KVM_CREATE_VM = KVM_CREATE_VM,
    ROOST_KVM_CHECK_EXTENSION = KVM_CHECK_EXTENSION,
    ROOST_KVM_GET_VCPU_MMAP_SIZE = KVM_GET_VCPU_MMAP_SIZE,
    ROOST_KVM_CREATE_VCPU = KVM_CREATE_VCPU,
    ROOST_KVM_SET_TSS_ADDR = KVM_SET_TSS_ADDR,
    ROOST_KVM_RUN = KVM_RUN,
    ROOST_KVM_NMI = KVM_NMI,
};
static const uint64_t roost_kvm_enable_cap = KVM_ENABLE_CAP;
static const uint64_t roost_kvm_get_supported_cpuid = KVM_GET_SUPPORTED_CPUID;
static const uint64_t roost_kvm_set_cpuid = KVM_SET_CPUID2;
static const uint64_t roost_kvm_set_identity_map = KVM_SET_IDENTITY_MAP_ADDR;
static const uint64_t roost_kvm_set_memory = KVM_SET_USER_MEMORY_REGION;
static const uint64_t roost_kvm_get_dirty_log = KVM_GET_DIRTY_LOG;
static const uint64_t roost_kvm_reset_dirty_rings = KVM_RESET_DIRTY_RINGS;
static const uint64_t roost_kvm_set_gsi_routing = KVM_SET_GSI_ROUTING;
static const uint64_t roost_kvm_irqfd = KVM_IRQFD;
static const uint64_t roost_kvm_ioeventfd = KVM_IOEVENTFD;
static const uint64_t roost_kvm_signal_msi = KVM_SIGNAL_MSI;
static const uint64_t roost_kvm_register_coalesced = KVM_REGISTER_COALESCED_MMIO;
static const uint64_t roost_kvm_unregister_coalesced = KVM_UNREGISTER_COALESCED_MMIO;
static const uint64_t roost_kvm_set_clock = KVM_SET_CLOCK;
static const uint64_t roost_kvm_get_regs = KVM_GET_REGS;
static const uint64_t roost_kvm_set_regs = KVM_SET_REGS;
static const uint64_t roost_kvm_get_sregs = KVM_GET_SREGS;
static const uint64_t roost_kvm_set_sregs = KVM_SET_SREGS;
static const uint64_t roost_kvm_get_sregs2 = KVM_GET_SREGS2;
static const uint64_t roost_kvm_set_sregs2 = KVM_SET_SREGS2;
static const uint64_t roost_kvm_get_xsave = KVM_GET_XSAVE;
static const uint64_t roost_kvm_set_xsave = KVM_SET_XSAVE;
static const uint64_t roost_kvm_get_xcrs = KVM_GET_XCRS;
static const uint64_t roost_kvm_set_xcrs = KVM_SET_XCRS;
static const uint64_t roost_kvm_get_debugregs = KVM_GET_DEBUGREGS;
static const uint64_t roost_kvm_set_debugregs = KVM_SET_DEBUGREGS;
static const uint64_t roost_kvm_get_events = KVM_GET_VCPU_EVENTS;
static const uint64_t roost_kvm_set_events = KVM_SET_VCPU_EVENTS;
static const uint64_t roost_kvm_get_mp_state = KVM_GET_MP_STATE;
static const uint64_t roost_kvm_set_mp_state = KVM_SET_MP_STATE;
static const uint64_t roost_kvm_get_msrs = KVM_GET_MSRS;
static const uint64_t roost_kvm_set_msrs = KVM_SET_MSRS;
static const uint64_t roost_kvm_get_lapic = KVM_GET_LAPIC;
static const uint64_t roost_kvm_set_lapic = KVM_SET_LAPIC;
static const uint64_t roost_kvm_interrupt = KVM_INTERRUPT;
static const uint64_t roost_kvm_has_attribute = KVM_HAS_DEVICE_ATTR;
static const uint64_t roost_kvm_get_attribute = KVM_GET_DEVICE_ATTR;
static const uint64_t roost_kvm_set_attribute = KVM_SET_DEVICE_ATTR;

// Structures whose last member has no length, with room for what Roost has.
#define ROOST_KVM_CPUID_ENTRIES 256
typedef struct {
    uint32_t count, padding;
    struct kvm_cpuid_entry2 entries[ROOST_KVM_CPUID_ENTRIES];
} roost_kvm_cpuid;
#define ROOST_KVM_MSR_ENTRIES 64
typedef struct {
    uint32_t count, padding;
    struct kvm_msr_entry entries[ROOST_KVM_MSR_ENTRIES];
} roost_kvm_msrs;
#define ROOST_KVM_ROUTES 24
typedef struct {
    uint32_t count, flags;
    struct kvm_irq_routing_entry entries[ROOST_KVM_ROUTES];
} roost_kvm_routing;
static inline struct kvm_cpuid_entry2 *roost_kvm_cpuid_at(roost_kvm_cpuid *list, uint32_t n) {
    return &list->entries[n % ROOST_KVM_CPUID_ENTRIES];
}
static inline struct kvm_msr_entry *roost_kvm_msr_at(roost_kvm_msrs *list, uint32_t n) {
    return &list->entries[n % ROOST_KVM_MSR_ENTRIES];
}
static inline struct kvm_irq_routing_entry *roost_kvm_route_at(roost_kvm_routing *list, uint32_t n) {
    return &list->entries[n % ROOST_KVM_ROUTES];
}

// The dirty ring: entries are harvested by the reader, then reset by KVM_RESET_DIRTY_RINGS.
static inline uint32_t roost_dirty_flags(struct kvm_dirty_gfn *entry) {
    return __atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE);
}
static inline void roost_dirty_harvested(struct kvm_dirty_gfn *entry) {
    __atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
}

// The ring of coalesced writes: its last is the kernel's, its first ours.
static inline uint32_t roost_ring_last(struct kvm_coalesced_mmio_ring *ring) {
    return __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE);
}
static inline void roost_ring_take(struct kvm_coalesced_mmio_ring *ring, uint32_t first) {
    __atomic_store_n(&ring->first, first, __ATOMIC_RELEASE);
}
static inline struct kvm_coalesced_mmio *roost_ring_at(struct kvm_coalesced_mmio_ring *ring, uint32_t n) {
    return &ring->coalesced_mmio[n];
}

static inline void roost_kvm_immediate_exit(struct kvm_run *run, uint8_t value) {
    __atomic_store_n(&run->immediate_exit, value, __ATOMIC_SEQ_CST);
}
static inline int32_t roost_load_thread(const int32_t *thread) { return __atomic_load_n(thread, __ATOMIC_SEQ_CST); }
static inline void roost_store_thread(int32_t *thread, int32_t value) { __atomic_store_n(thread, value, __ATOMIC_SEQ_CST); }

int roost_ioctl(int fd, uint64_t request, void *argument);
int roost_ioctl_value(int fd, uint64_t request, uint64_t argument);
// A signal without effect but that blocking calls return: what `roost_kick` sends.
void roost_allow_kicks(void);
int32_t roost_thread_number(void);
void roost_kick(int32_t thread);

#endif

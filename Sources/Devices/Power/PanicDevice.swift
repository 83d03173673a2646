// pvpanic, the device by which a guest's kernel tells that it has panicked. QEMU, docs/specs/pvpanic.
//
// PCI 1B36:0011, BAR 0: one byte of memory
//
//   R  the events that are understood     W  the events that have happened
//   0 the kernel has panicked   1 it has panicked, and a crash kernel takes over
public import DeviceModel
internal import Synchronization

/// What a guest's kernel tells of its end.
public enum GuestPanic: Sendable, Equatable {
    /// It has panicked.
    case panicked
    /// It has panicked, and its crash kernel goes on to save what there is.
    case crashKernel
}

/// A pvpanic device.
public final class PanicDevice: PCIDevice, Saveable {
    /// The PCI function.
    public let function: PCIFunction
    private let register: Register

    /// Makes a device; `tell` is called on the thread of the vCPU that tells, once for each event until the next reset.
    public init(_ tell: @escaping @Sendable (GuestPanic) -> Void) {
        register = Register(tell: tell)
        function = PCIFunction(
            PCIIdentity(
                vendor: 0x1B36, device: 0x0011, classCode: 0x08_80_00, subsystemVendor: 0x1AF4, subsystem: 0x1100))
        function.addBAR(0, .memory32, size: 16, device: register)
    }

    private final class Register: BusDevice {
        private let tell: @Sendable (GuestPanic) -> Void
        /// The events that were told, as bits.
        private let told = Mutex<UInt64>(0)

        init(tell: @escaping @Sendable (GuestPanic) -> Void) { self.tell = tell }

        func read(offset: UInt64, size: Int) -> UInt64 { offset == 0 ? 3 : 0 }

        func write(offset: UInt64, size: Int, value: UInt64) {
            guard offset == 0 else { return }
            let event = value & 1 != 0 ? 1 : value & 2
            let isNew = told.withLock { told in
                defer { told |= event }
                return event & ~told != 0
            }
            if isNew { tell(event == 1 ? .panicked : .crashKernel) }
        }

        func reset() { told.withLock { $0 = 0 } }
    }

    /// The next panic is told again.
    public func resetDevice() { register.reset() }

    /// The PCI function's.
    public typealias State = PCIFunction.State

    /// Takes the state.
    public func saveState() -> State { function.saveState() }

    /// Puts a state back.
    public func restoreState(_ state: State) throws { try function.restoreState(state) }
}

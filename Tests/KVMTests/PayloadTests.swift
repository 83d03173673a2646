// Guests of a few instructions on the host's own KVM: modes, ports, memory-mapped I/O, interrupts, dirty pages, faults.
import CHost
import CPU
import Foundation
import GuestMemory
import HostOS
import KVM
import Testing

@Suite("KVM payloads", .serialized, .enabled(if: HostKVM.isThere, HostKVM.reason))
struct PayloadTests {
    @Test("Code runs in each mode, and its ports are exits", arguments: KVMRig.Mode.allCases)
    func modes(_ mode: KVMRig.Mode) throws {
        // mov ecx/cx, 5; in al, 0x40; add al, cl; out 0x80, al
        let move: [UInt8] = mode == .real ? [0xB9, 5, 0] : [0xB9, 5, 0, 0, 0]
        let rig = try KVMRig(mode, move + [0xE4, 0x40, 0x00, 0xC8, 0xE6, 0x80] + Payload.spin)
        #expect(rig.run() == .portRead(port: 0x40, size: 1))
        #expect(!rig.engine.isBetweenInstructions)
        rig.engine.complete(37)
        #expect(rig.run() == Payload.said(42))
        rig.engine.complete(0)
    }

    @Test("Strings to and from ports come element by element")
    func strings() throws {
        // mov si, 0x2000; mov di, 0x2010; mov cx, 3; mov dx, 0x3f8; cld; rep outsb; mov cx, 3; rep insb
        let code: [UInt8] = [
            0xBE, 0x00, 0x20, 0xBF, 0x10, 0x20, 0xB9, 3, 0, 0xBA, 0xF8, 0x03, 0xFC, 0xF3, 0x6E, 0xB9, 3, 0, 0xF3, 0x6C,
        ]
        let rig = try KVMRig(.real, code + Payload.say(1) + Payload.spin)
        try rig.memory.write(Array("abc".utf8), at: GuestPhysicalAddress(0x2000))
        for byte in "abc".utf8 {
            #expect(rig.run() == .portWrite(port: 0x3F8, size: 1, value: UInt32(byte)))
            rig.engine.complete(0)
        }
        for byte in "xyz".utf8 {
            #expect(rig.run() == .portRead(port: 0x3F8, size: 1))
            rig.engine.complete(UInt64(byte))
        }
        #expect(rig.run() == Payload.said(1))
        #expect(try rig.memory.read(GuestPhysicalAddress(0x2010), length: 3) == Array("xyz".utf8))
    }

    @Test("Memory outside RAM is an exit, reads are answered")
    func memoryMapped() throws {
        // mov rbx, 0xd0000000; mov dword [rbx], 0x11223344; mov rax, [rbx+8]; add al, 1; out 0x80, al
        let code: [UInt8] = [
            0xBB, 0, 0, 0, 0xD0, 0xC7, 0x03, 0x44, 0x33, 0x22, 0x11, 0x48, 0x8B, 0x43, 0x08, 0x04, 0x01, 0xE6, 0x80,
        ]
        let rig = try KVMRig(.long, code + Payload.spin)
        #expect(rig.run() == .mmioWrite(address: 0xD000_0000, size: 4, value: 0x1122_3344))
        rig.engine.complete(0)
        #expect(rig.run() == .mmioRead(address: 0xD000_0008, size: 8))
        rig.engine.complete(0x1_0000_0041)
        #expect(rig.run() == Payload.said(0x42))
    }

    /// A real-mode guest whose handler for `vector` says 9; interrupts are on and it counts in memory meanwhile.
    private func interruptible(_ vector: Int) throws -> KVMRig {
        // sti; out 0x80 (1); again: inc word [0x3000]; jmp again
        let rig = try KVMRig(.real, [0xFB] + Payload.say(1) + [0xFF, 0x06, 0x00, 0x30, 0xEB, 0xFA])
        try rig.memory.write(Payload.say(9) + [0xCF], at: GuestPhysicalAddress(0x4000))
        try rig.memory.store(0x4000 as UInt32, at: GuestPhysicalAddress(UInt64(vector) * 4))
        #expect(rig.run() == Payload.said(1))
        rig.engine.complete(0)
        return rig
    }

    @Test("A message reaches the guest through the kernel's local APIC")
    func messages() throws {
        let rig = try interruptible(0x40)
        #expect(rig.machine.signal(KVMMachine.Message(address: 0xFEE0_0000, data: 0x40)))
        #expect(rig.run() == Payload.said(9))
        // A hypervisor that emulates keeps what is in service to itself.
        guard KVMHost.processorHasVirtualization else { return }
        #expect(try rig.engine.localAPIC().registers[0x12] == 1, "vector 0x40 is in service")
    }

    @Test("An interrupt of the 8259 is injected when the guest can take it")
    func external() throws {
        let rig = try interruptible(0x30)
        rig.cpu.state.pointee.interrupt_window = 1
        while !rig.engine.canTakeInterrupt { #expect(rig.run() == .interruptWindow) }
        #expect(rig.engine.inject(vector: 0x30))
        #expect(rig.run() == Payload.said(9))
    }

    @Test("An event descriptor sends what its pin is routed to; the end of a level-triggered one is an exit")
    func eventDescriptors() throws {
        let rig = try interruptible(0x40)
        let counter = try FileDescriptor.eventCounter()
        rig.machine.route(pin: 5, KVMMachine.Message(address: 0xFEE0_0000, data: 0x40))
        try rig.machine.connect(counter, pin: 5)
        counter.signal()
        #expect(rig.run() == Payload.said(9))
        rig.engine.complete(0)

        guard KVMHost.processorHasVirtualization else { return }
        // The same, level-triggered; a handler with access to the APIC's page ends it: long mode.
        // mov dword [0xfee000b0], 0; out 0x80 (3)
        let code: [UInt8] = [0xBB, 0xB0, 0, 0xE0, 0xFE, 0xC7, 0x03, 0, 0, 0, 0] + Payload.say(3) + Payload.spin
        let level = try KVMRig(.long, code)
        let message = KVMMachine.Message(address: 0xFEE0_0000, data: 0xC041)
        level.machine.route(pin: 9, message)
        var apic = try level.engine.localAPIC()
        apic.registers[0x12] = 2
        apic.registers[0x1A] = 2
        try level.engine.setLocalAPIC(apic)
        #expect(level.run() == .endOfInterrupt(0x41))
        #expect(level.run() == Payload.said(3))
    }

    @Test("A write that an event descriptor takes is no exit")
    func ioEvents() throws {
        let code: [UInt8] = [0xBB, 0, 0, 0, 0xD0, 0xC7, 0x03, 7, 0, 0, 0] + Payload.say(3) + Payload.spin
        let rig = try KVMRig(.long, code)
        let counter = try FileDescriptor.eventCounter()
        try rig.machine.signal(counter, onWriteTo: 0xD000_0000, isOn: true)
        #expect(rig.run() == Payload.said(3))
        #expect(FileDescriptor.waitForInput(counter.rawValue, -1).first)
    }

    @Test("Collected writes come in order before the exit after them")
    func collected() throws {
        // mov dx, 0x3f8; mov al, 'a'; out dx, al; inc al; out dx, al; then say 3
        let code: [UInt8] = [0xBA, 0xF8, 0x03, 0xB0, 0x61, 0xEE, 0xFE, 0xC0, 0xEE]
        let rig = try KVMRig(.real, code + Payload.say(3) + Payload.spin)
        rig.machine.collectWrites(toPort: 0x3F8, isOn: true)
        for value in [0x61, 0x62] as [UInt32] {
            #expect(rig.run() == .portWrite(port: 0x3F8, size: 1, value: value))
            rig.engine.complete(0)
        }
        #expect(rig.run() == Payload.said(3))
        #expect(rig.engine.exits == 1)
    }

    @Test("The dirty log names the pages that the guest wrote", arguments: [0, 1024])
    func dirtyLog(_ ringEntries: Int) throws {
        // mov byte [0x3000], 1; mov byte [0x5000], 1
        let code: [UInt8] = [0xC6, 0x06, 0, 0x30, 1, 0xC6, 0x06, 0, 0x50, 1]
        let rig = try KVMRig(.real, code + Payload.say(1) + Payload.spin, ringEntries: ringEntries)
        if ringEntries != 0 && rig.machine.ringEntries == 0 { return }
        for page in 0..<256 { rig.memory.pageFlags[page] = 0 }
        try rig.machine.logWrites(true)
        #expect(rig.run() == Payload.said(1))
        if ringEntries == 0 { try rig.machine.collectWrites() } else { rig.engine.harvestWrites() }
        let dirty = (0..<256).filter { rig.memory.pageFlags[$0] & PageFlags.dirty.rawValue != 0 }
        #expect(dirty.contains(3) && dirty.contains(5) && !dirty.contains(4), "\(dirty)")
        try rig.machine.logWrites(false)
    }

    @Test("A kick from another thread ends the run, whether it comes before or meanwhile")
    func kick() throws {
        let rig = try KVMRig(.real, Payload.spin)
        rig.engine.kick()
        #expect(rig.engine.run() == .interrupted)
        let engine = rig.engine
        let other = try HostThread(name: "kicker") {
            usleep(20_000)
            engine.kick()
        }
        #expect(rig.engine.run() == .interrupted)
        other.join()
    }

    @Test("A register that the kernel doesn't know is an exit")
    func registers() throws {
        // mov ecx, 0x1234567; rdmsr; out 0x80, al
        let rig = try KVMRig(.protected, [0xB9, 0x67, 0x45, 0x23, 0x01, 0x0F, 0x32, 0xE6, 0x80] + Payload.spin)
        let exit = rig.run()
        // Where the hypervisor emulates, it may ask for another register of its own first.
        #expect(exit == .readMSR(0x123_4567))
        rig.engine.complete(0x77)
        #expect(rig.run() == Payload.said(0x77))
    }

    @Test("A triple fault is a shutdown, not a hang")
    func shutdown() throws {
        let rig = try KVMRig(.protected, [0x0F, 0x0B])
        rig.cpu.state.pointee.idtr_limit = 0
        try rig.engine.loadState()
        #expect(rig.run() == .shutdown)
    }

    @Test("Code where there is no memory is reported in words")
    func internalError() throws {
        // jmp far to memory-mapped I/O: mov eax, 0xd0000000; jmp eax
        let rig = try KVMRig(.protected, [0xB8, 0, 0, 0, 0xD0, 0xFF, 0xE0])
        var exit = rig.run()
        for _ in 0..<32 {
            guard case .mmioRead = exit else { break }
            rig.engine.complete(0)
            exit = rig.run()
        }
        guard case .internalError(let text) = exit else {
            Issue.record("\(exit)")
            return
        }
        #expect(text.contains("KVM"), "\(text)")
    }
}

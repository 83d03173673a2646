import DeviceModel
import Devices
import MachineTesting
import Testing

/// A memory that answers with the offset.
private final class Echo: BusDevice {
    func read(offset: UInt64, size: Int) -> UInt64 { offset }
    func write(offset: UInt64, size: Int, value: UInt64) {}
}

private final class TestDevice: PCIDevice {
    let function = PCIFunction(
        PCIIdentity(vendor: 0x1234, device: 0x5678, classCode: 0x010203, revision: 4, hasInterruptPin: true))
    init() {
        function.addBAR(0, .memory32, size: 0x1000, device: Echo())
        function.addBAR(1, .io, size: 0x20, device: Echo())
        function.addBAR(2, .memory64, size: 0x10_0000, device: Echo())
        function.addMSIX(vectors: 4, bar: 5)
    }
    func resetDevice() {}
}

private struct PCIRig {
    let ports = Bus()
    let mmio = Bus()
    let messages = RecordingMessages()
    let lines = (0..<4).map { _ in RecordingLine() }
    let device = TestDevice()
    let bridge: PCIHostBridge

    init() {
        bridge = PCIHostBridge(ports: ports, memory: mmio, messages: messages, interruptLines: lines)
        bridge.add(device, slot: 2)
        bridge.assignResources()
    }

    func read(_ register: UInt64, _ size: Int = 4) -> UInt64 { mmio.read(0xE001_0000 + register, size: size) }
    func write(_ register: UInt64, _ value: UInt64, _ size: Int = 4) {
        mmio.write(0xE001_0000 + register, size: size, value: value)
    }
}

@Suite struct PCITests {
    @Test func `identity reads the same through ports and memory`() {
        let rig = PCIRig()
        #expect(rig.read(0) == 0x5678_1234)
        #expect(rig.read(8) == 0x0102_0304)
        rig.ports.write(0xCF8, size: 4, value: 0x8000_1000)
        #expect(rig.ports.read(0xCFC, size: 4) == 0x5678_1234)
        #expect(rig.ports.read(0xCFE, size: 2) == 0x5678)
        rig.ports.write(0xCF8, size: 4, value: 0x1000)
        #expect(rig.ports.read(0xCFC, size: 4) == 0xFFFF_FFFF)
    }

    @Test func `absent slots and functions read as ones`() {
        let rig = PCIRig()
        #expect(rig.mmio.read(0xE002_0000, size: 4) == 0xFFFF_FFFF)
        #expect(rig.mmio.read(0xE001_1000, size: 4) == 0xFFFF_FFFF)
        #expect(rig.read(0x100) == 0xFFFF_FFFF)
    }

    @Test func `read-only registers stay`() {
        let rig = PCIRig()
        rig.write(0, 0)
        rig.write(8, 0)
        #expect(rig.read(0) == 0x5678_1234)
        #expect(rig.read(8) == 0x0102_0304)
    }

    @Test func `sizing a base address register gives its size and type`() {
        let rig = PCIRig()
        for (register, size) in [(0x10, 0xFFFF_F000), (0x14, 0xFFFF_FFE1), (0x18, 0xFFF0_000C)] as [(UInt64, UInt64)] {
            rig.write(register, 0xFFFF_FFFF)
            #expect(rig.read(register) == size)
        }
        rig.write(0x1C, 0xFFFF_FFFF)
        #expect(rig.read(0x1C) == 0xFFFF_FFFF)
    }

    @Test func `ranges follow their registers and the command register`() {
        let rig = PCIRig()
        let assigned = rig.read(0x10) & ~15
        #expect(rig.mmio.read(assigned + 0x10, size: 4) == 0x10)
        rig.write(0x10, 0xD000_0000)
        #expect(rig.mmio.read(assigned + 0x10, size: 4) == 0xFFFF_FFFF)
        #expect(rig.mmio.read(0xD000_0020, size: 4) == 0x20)
        rig.write(4, 1, 2)
        #expect(rig.mmio.read(0xD000_0020, size: 4) == 0xFFFF_FFFF)
        let port = rig.read(0x14) & ~3
        #expect(rig.ports.read(port + 4, size: 1) == 4)
    }

    @Test func `a range outside the window or over another is not there`() {
        let rig = PCIRig()
        rig.write(0x10, 0x0010_0000)
        #expect(rig.mmio.read(0x10_0010, size: 4) == 0xFFFF_FFFF)
        rig.write(0x10, 0xFEE0_0000)
        #expect(rig.device.function.mappedAddress(ofBAR: 0) == nil)
        let other = rig.read(0x18) & ~15
        rig.write(0x10, other)
        #expect(rig.device.function.mappedAddress(ofBAR: 0) == nil)
        // When the other moves away, it appears.
        rig.write(0x18, 0xD000_0000)
        #expect(rig.device.function.mappedAddress(ofBAR: 0) == other)
        rig.write(0x10, 0xE001_0000)
        #expect(rig.read(0) == 0x5678_1234)
    }

    @Test func `MSI-X sends, masks and remembers`() {
        let rig = PCIRig()
        let table = rig.read(0x24) & ~15
        rig.mmio.write(table + 16, size: 4, value: 0xFEE0_1000)
        rig.mmio.write(table + 24, size: 8, value: 0x55)
        rig.write(4, 6, 2)
        rig.write(0x42, 0xC000, 2)
        rig.device.function.signal(vector: 1)
        #expect(rig.messages.messages.isEmpty)
        #expect(rig.mmio.read(table + 0x800, size: 4) == 2)
        rig.write(0x42, 0x8000, 2)
        #expect(rig.messages.messages.map { $0.data } == [0x55])
        #expect(rig.messages.messages.first?.address == 0xFEE0_1000)
        #expect(rig.mmio.read(table + 0x800, size: 4) == 0)
        rig.mmio.write(table + 28, size: 4, value: 1)
        rig.device.function.signal(vector: 1)
        rig.device.function.signal(vector: 99)
        #expect(rig.messages.messages.count == 1)
        rig.mmio.write(table + 28, size: 4, value: 0)
        #expect(rig.messages.messages.count == 2)
    }

    @Test func `the wire obeys interrupt disable and MSI-X`() {
        let rig = PCIRig()
        rig.device.function.setInterrupt(true)
        #expect(rig.lines[2].level)
        #expect(rig.read(6, 2) & 8 == 8)
        rig.write(4, 0x400, 2)
        #expect(!rig.lines[2].level)
        rig.write(4, 0, 2)
        #expect(rig.lines[2].level)
        rig.write(0x42, 0x8000, 2)
        #expect(!rig.lines[2].level)
    }

    @Test func `functions share a wire`() {
        let rig = PCIRig()
        let second = TestDevice()
        rig.bridge.add(second, slot: 6)
        rig.device.function.setInterrupt(true)
        second.function.setInterrupt(true)
        rig.device.function.setInterrupt(false)
        #expect(rig.lines[2].level)
        second.function.setInterrupt(false)
        #expect(!rig.lines[2].level)
    }

    @Test func `reset and saved state keep and forget what the guest wrote`() throws {
        let rig = PCIRig()
        rig.write(0x10, 0xD000_0000)
        let state = rig.device.function.saveState()
        rig.bridge.reset()
        #expect(rig.device.function.mappedAddress(ofBAR: 0) == nil)
        try rig.device.function.restoreState(state)
        rig.bridge.remap()
        #expect(rig.device.function.mappedAddress(ofBAR: 0) == 0xD000_0000)
    }

    @Test func `configuration writes at random neither trap nor hang`() {
        let rig = PCIRig()
        var random = SeededRandom(state: 0x1234_5678_9ABC)
        for _ in 0..<20_000 {
            let size = [1, 2, 4, 8].randomElement(using: &random) ?? 4
            let address = 0xE000_0000 + UInt64.random(in: 0..<0x4_0000, using: &random)
            rig.mmio.write(address, size: size, value: random.next())
            _ = rig.mmio.read(address, size: size)
            rig.ports.write(0xCF8 + UInt64.random(in: 0..<8, using: &random), size: min(size, 4), value: random.next())
            if let mapped = rig.device.function.mappedAddress(ofBAR: 5) {
                rig.mmio.write(mapped + random.next() % 4096, size: size, value: random.next())
            }
            rig.device.function.signal(vector: Int.random(in: 0..<5, using: &random))
        }
    }
}

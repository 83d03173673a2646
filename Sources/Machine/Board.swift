// The board: which chips there are, where, and how they are wired.
//
//   ports                              memory
//   0x020 0x0A0 0x4D0  8259 pair       0xFEE00000  each processor's local APIC (Processor.swift)
//   0x040 0x061        8254            0xFEC00000  I/O APIC
//   0x060 0x064 0x092  i8042           0xE0000000  PCI configuration space
//   0x070              RTC             0xC0000000  PCI memory window
//   0x080              POST code       0xFF000000  test device
//   0x0E9              debug console
//   0x3F8              COM1, IRQ 4
//   0x510              fw_cfg
//   0x600              ACPI power management, GSI 9
//   0x620              ACPI's generic event device, GSI 20
//   0xCF8 0xCFC        PCI configuration, reset at 0xCF9
package import DeviceModel
package import Devices
package import GuestMemory

/// All chips of one machine. Adding a device is one line here.
package final class Board: Sendable {
    let memory: GuestMemory
    let door: any Door
    /// The I/O port space.
    package let ports = Bus()
    /// The memory space outside RAM.
    package let mmio = Bus()
    let apics = APICBus()
    /// The processors' interrupt controllers, by identifier.
    package let localAPICs: [LocalAPIC]
    /// The first processor's.
    package var localAPIC: LocalAPIC { localAPICs[0] }
    let ioAPIC: IOAPIC
    let pic: PIC8259
    let router: InterruptRouter
    let serial: Serial16550A
    let acpi: ACPIPower
    let firmware: FirmwareConfig
    private let pit: PIT8254
    private let rtc: RTC
    private let keyboard: I8042
    private let resetControl: ResetControl
    let generation: GenerationID
    let events: EventBlock
    let bridge: PCIHostBridge
    private let lint0 = LINT0Line()
    private let post = PostPort()
    private let debugConsole: DebugConsole
    private let possibleProcessors: Int
    let traffic = Traffic()
    let output: @Sendable ([UInt8]) -> Void

    /// Makes and wires everything but what sits on the PCI bus.
    package init(
        _ configuration: MachineConfiguration, memory: GuestMemory, door: any Door, power: any PowerControl,
        tscFrequency: UInt64, output: @escaping @Sendable ([UInt8]) -> Void
    ) {
        self.memory = memory
        self.door = door
        possibleProcessors = max(configuration.mostProcessors, 1)
        self.output = output
        let pic = PIC8259(output: lint0)
        self.pic = pic
        localAPICs = (0..<possibleProcessors).map { [apics] id in
            LocalAPIC(
                id: UInt32(id), isBootstrap: id == 0, bus: apics, door: door, tscFrequency: tscFrequency,
                acknowledgeExternal: { pic.acknowledge() })
        }
        lint0.connect(to: localAPICs[0])
        ioAPIC = IOAPIC(bus: apics)
        router = InterruptRouter(pic: pic, ioapic: ioAPIC)
        pit = PIT8254(door: door, line: router.line(isaIRQ: 0))
        rtc = RTC(
            door: door, line: router.line(isaIRQ: 8), memoryBelow4G: memory.lowSize,
            memoryAbove4G: memory.bootSize - memory.lowSize)
        keyboard = I8042(
            keyboardLine: router.line(isaIRQ: 1), mouseLine: router.line(isaIRQ: 12), power: power)
        serial = Serial16550A(line: router.line(isaIRQ: 4), output: output)
        acpi = ACPIPower(door: door, line: router.line(gsi: ACPIPower.interrupt), power: power)
        generation = GenerationID(
            at: GuestPhysicalAddress(BoardLayout.generationID), memory: memory, door: door)
        events = EventBlock(
            processors: configuration.processors, of: possibleProcessors,
            line: router.line(gsi: BoardLayout.eventInterrupt))
        firmware = FirmwareConfig(memory: memory, cpuCount: configuration.processors)
        firmware.add(file: "etc/e820", MemoryMapEntry.bytes(MemoryMapEntry.map(ramSize: memory.bootSize)))
        resetControl = ResetControl(power: power)
        debugConsole = DebugConsole(output: output)
        bridge = PCIHostBridge(
            ports: ports, memory: mmio, messages: apics,
            interruptLines: (0..<4).map { [router] in router.line(gsi: Int(ACPITables.gsi(slot: $0, pin: 0))) },
            resetPort: resetControl,
            windows: PCIWindows(ecam: BoardLayout.configurationBase, memory: BoardLayout.memoryWindow))
        attach()
        if let port = configuration.debugExitPort { DebugExit(power: power).attach(to: ports, port: port) }
        if configuration.hasTestDevice {
            let lines = (0..<24).map { $0 < 16 ? router.line(isaIRQ: $0) : router.line(gsi: $0) }
            TestDevice(lines: lines).attach(ports: ports, memory: mmio)
        }
    }

    /// Cuts what its chips refer to each other by, so that they go; nothing runs any more.
    func takeApart() {
        ports.removeAll()
        mmio.removeAll()
        apics.removeAll()
        lint0.connect(to: nil)
    }

    private func attach() {
        pic.attach(to: ports)
        pit.attach(to: ports)
        keyboard.attach(to: ports)
        rtc.attach(to: ports)
        post.attach(to: ports)
        debugConsole.attach(to: ports)
        ports.attach(serial, at: 0x3F8, length: 8)
        firmware.attach(to: ports)
        acpi.attach(to: ports)
        events.attach(to: ports)
        mmio.attach(ioAPIC, at: BoardLayout.ioAPIC, length: 0x1000)
    }

    /// Back to the state after power-on; nothing may run.
    package func reset() {
        for apic in localAPICs { apic.reset() }
        ioAPIC.reset()
        pic.reset()
        pit.reset()
        rtc.reset()
        keyboard.reset()
        serial.reset()
        acpi.reset()
        events.reset()
        firmware.reset()
        bridge.reset()
    }

    /// Everything that has a state, in the order in which states are put back: devices before the bridge that maps them.
    var components: [(name: String, component: any Saveable)] {
        // Virtual time first: timers are armed by it.
        var all: [(String, any Saveable)] = (door as? VirtualDoor).map { [("door", $0)] } ?? []
        all += localAPICs.map { ("localAPIC\($0.id)", $0) }
        all += [
            ("router", router), ("pic8259", pic), ("ioAPIC", ioAPIC), ("pit8254", pit), ("rtc", rtc),
            ("keyboard", keyboard), ("serial", serial), ("acpiPower", acpi), ("firmwareConfig", firmware),
            ("postPort", post), ("debugConsole", debugConsole), ("resetControl", resetControl),
            ("generationID", generation), ("eventBlock", events),
        ]
        for (slot, device) in bridge.devices {
            if let device = device as? any Saveable { all.append(("pci\(slot)", device)) }
        }
        return all + [("hostBridge", bridge)]
    }

    /// What firmware leaves behind: the ACPI tables, and addresses in the PCI functions' registers.
    package func prepare() throws {
        bridge.assignResources()
        let tables = ACPITables(present: events.present, possible: possibleProcessors).build(at: BoardLayout.acpiTables)
        try memory.write(tables, at: GuestPhysicalAddress(BoardLayout.acpiTables))
        generation.place()
    }
}

extension Serial16550A: ConsolePort {
    var room: Int { roomForInput }
    func receive(_ bytes: [UInt8]) { _ = receive(bytes) as Int }
}

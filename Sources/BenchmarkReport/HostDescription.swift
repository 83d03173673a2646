// Where and with what figures were measured.

/// The host, the guest's kernel, the versions.
package struct HostDescription: Codable {
    package var processor: String
    package var processors: Int
    package var kernel: String
    package var guestKernel: String
    package var guestMemoryMiB: Int
    package var engine: String
    package var qemu: String
    package var qemuCPU: String
    /// ISO 8601.
    package var date: String
    /// The load average of the last minute, before anything ran.
    package var loadAtStart: Double

    package init(
        processor: String, processors: Int, kernel: String, guestKernel: String, guestMemoryMiB: Int, engine: String,
        qemu: String, qemuCPU: String, date: String, loadAtStart: Double
    ) {
        self.processor = processor
        self.processors = processors
        self.kernel = kernel
        self.guestKernel = guestKernel
        self.guestMemoryMiB = guestMemoryMiB
        self.engine = engine
        self.qemu = qemu
        self.qemuCPU = qemuCPU
        self.date = date
        self.loadAtStart = loadAtStart
    }

    /// One sentence without its period.
    package var sentence: String {
        "\(date.prefix(10)), \(processor) (\(processors) processors), Linux \(kernel); guest kernel \(guestKernel), "
            + "1 CPU, \(guestMemoryMiB) MiB; Roost's engine: \(engine); QEMU \(qemu) with -cpu \(qemuCPU)"
    }
}

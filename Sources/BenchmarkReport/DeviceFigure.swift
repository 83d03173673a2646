// What `roost-bench devices` measures, each a rate: larger is faster.

/// One figure of disks, networks or processors.
package struct DeviceFigure: Codable, Equatable {
    /// As the guest names it in its result.
    package var name: String
    /// What the rate is printed in.
    package var unit: String
    /// How many of a result's operations a second make one unit.
    package var scale: Double
    /// Roost's rate by QEMU TCG's, at least.
    package var wanted: Double?

    private init(_ name: String, _ unit: String, _ scale: Double, wanted: Double? = 2) {
        self.name = name
        self.unit = unit
        self.scale = scale
        self.wanted = wanted
    }

    /// Four kinds of access, and writes that are each followed by a flush, to one disk; a result counts bytes, or flushes.
    private static func disk(_ format: String) -> [DeviceFigure] {
        [
            DeviceFigure("\(format)-randread", "4 KiB reads/s", 4096),
            DeviceFigure("\(format)-randwrite", "4 KiB writes/s", 4096),
            DeviceFigure("\(format)-read", "MiB/s", 1_048_576),
            DeviceFigure("\(format)-write", "MiB/s", 1_048_576),
            DeviceFigure("\(format)-fsync", "flushes/s", 1, wanted: nil),
        ]
    }

    /// Compilations on one processor and on two.
    package static let processors = [1, 2].map { DeviceFigure("make-\($0)cpu", "files/s", 1) }
    package static let disks = disk("raw") + disk("qcow2")
    /// To the host, from it, and between two guests; a result counts bits.
    package static let network = ["to-host", "from-host"].map { DeviceFigure("net-\($0)", "Mbit/s", 1e6) }
    package static let guests = [DeviceFigure("net-guests", "Mbit/s", 1e6)]

    /// In the order of the table.
    package static let all = processors + disks + network + guests

    /// How many times as fast two processors are to be as one.
    package static let wantedOfTwo = 1.7
    /// MiB of 256 that a guest frees which the host is to have back.
    package static let wantedMemory = 200.0
}

// The options that limit disks and network cards.
internal import ArgumentParser
internal import Machines

/// Limits on what a guest uses.
struct LimitOptions: ParsableArguments {
    @Option(help: "Requests a second of every disk; 0: no limit.")
    var diskIops: UInt64?

    @Option(help: "Bytes a second of every disk; 0: no limit.")
    var diskBps: MemorySize?

    @Option(help: "Bits a second of every network card, each way; 0: no limit.")
    var netRate: BitRate?

    @Option(help: "Bytes that pass a network card at once after a pause; 0: a tenth of a second's.")
    var netBurst: MemorySize?

    /// What is to change.
    var change: LimitChange {
        var change = LimitChange()
        change.diskOperations = diskIops
        change.diskBytes = diskBps?.bytes
        change.networkRate = netRate?.bits
        change.networkBurst = netBurst?.bytes
        return change
    }
}

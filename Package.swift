// swift-tools-version: 6.2
// One section a target, lowest layer first: the enforcement of the layers in docs/architecture.md.
import PackageDescription

let package = Package(
    name: "roost",
    products: [
        .executable(name: "roost", targets: ["roost"]),
        .executable(name: "roost-agent", targets: ["roost-agent"]),
        .executable(name: "roost-bench", targets: ["roost-bench"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    ],
    targets: [
        // C and assembly: the few things Swift cannot say.
        .target(name: "CHost"),
        .systemLibrary(
            name: "CZydis", providers: [.apt(["libzydis-dev"])]),
        .systemLibrary(
            name: "CSlirp", providers: [.apt(["libslirp-dev"])]),
        .systemLibrary(
            name: "CZlib", providers: [.apt(["zlib1g-dev"])]),
        .systemLibrary(
            name: "CZstd", providers: [.apt(["libzstd-dev"])]),
        .target(name: "CNBD"),
        .target(name: "CURing", linkerSettings: [.linkedLibrary("uring")]),

        // Typed Linux.
        .target(name: "HostOS", dependencies: ["CHost", "CURing"]),
        .testTarget(name: "HostOSTests", dependencies: ["HostOS"]),

        // Guest-physical address space.
        .target(name: "GuestMemory", dependencies: ["CHost", "HostOS"]),
        .testTarget(name: "GuestMemoryTests", dependencies: ["GuestMemory", "HostOS"]),

        // What devices stand on.
        .target(name: "DeviceModel", dependencies: ["GuestMemory"]),
        .target(name: "MachineTesting", dependencies: ["DeviceModel"]),
        .testTarget(name: "DeviceModelTests", dependencies: ["DeviceModel", "MachineTesting"]),

        // The processor.
        .target(name: "CPU", dependencies: ["CHost", "HostOS", "GuestMemory", "DeviceModel"]),
        .target(name: "CHostExecutor", path: "Tests/CHostExecutor"),
        .testTarget(
            name: "CPUTests",
            dependencies: ["CPU", "CHost", "CHostExecutor", "CZydis", "GuestMemory", "HostOS", "MachineTesting"]),

        // The processor that the host's hypervisor runs.
        .target(name: "KVM", dependencies: ["CHost", "HostOS", "GuestMemory", "DeviceModel", "CPU"]),
        .testTarget(name: "KVMTests", dependencies: ["KVM", "CHost", "CPU", "GuestMemory", "HostOS"]),

        // Chips, buses, virtio.
        .target(name: "Devices", dependencies: ["DeviceModel", "GuestMemory"]),
        .testTarget(name: "DevicesTests", dependencies: ["Devices", "HostOS", "MachineTesting"]),

        // What stands behind devices.
        .target(name: "Storage", dependencies: ["HostOS", "DeviceModel", "CNBD", "CZlib", "CZstd"]),
        .testTarget(name: "StorageTests", dependencies: ["Storage", "DeviceModel", "HostOS"]),
        .target(name: "Network", dependencies: ["CSlirp", "HostOS"]),
        .testTarget(name: "NetworkTests", dependencies: ["Network", "HostOS", "MachineTesting"]),

        // The only place that puts it all together.
        .target(
            name: "Machine",
            dependencies: [
                "CHost", "HostOS", "GuestMemory", "DeviceModel", "CPU", "KVM", "Devices", "Storage", "Network",
                "AgentProtocol", "CZydis",
                .product(name: "Logging", package: "swift-log"),
            ]),
        .testTarget(
            name: "MachineTests",
            dependencies: [
                "Machine", "MachineTesting", "CHost", "CPU", "Devices", "GuestMemory", "HostOS", "Images", "Storage",
            ]),

        // The program in guests that runs what the host wants run: static, for it has to run in any Linux.
        .target(name: "AgentProtocol"),
        .testTarget(name: "AgentProtocolTests", dependencies: ["AgentProtocol"]),
        .target(name: "AgentClient", dependencies: ["AgentProtocol", "HostOS"]),
        .target(name: "CAgent"),
        .executableTarget(
            name: "roost-agent", dependencies: ["AgentProtocol", "CAgent"], path: "Sources/Agent",
            linkerSettings: [.unsafeFlags(["-static-executable", "-Xlinker", "--gc-sections", "-Xlinker", "-s"])]),

        // Guest images.
        .target(name: "Images", dependencies: ["HostOS", "Storage"]),
        .testTarget(name: "ImagesTests", dependencies: ["Images", "HostOS"]),

        // Machines that are kept: their folders, their processes, their control sockets.
        .target(
            name: "Machines",
            dependencies: ["AgentClient", "AgentProtocol", "HostOS", "Images", "Machine", "Storage"]),
        .testTarget(name: "MachinesTests", dependencies: ["Machines", "Machine", "HostOS", "Images", "Storage"]),

        // The figures that Roost promises, measured.
        .target(name: "BenchmarkReport"),
        .testTarget(name: "BenchmarkReportTests", dependencies: ["BenchmarkReport"]),
        .executableTarget(
            name: "roost-bench",
            dependencies: [
                "BenchmarkReport", "CHost", "HostOS", "GuestMemory", "CPU", "Images",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            path: "Sources/Benchmarks"),

        // The command line.
        .executableTarget(
            name: "roost",
            dependencies: [
                "AgentClient", "AgentProtocol", "HostOS", "Machine", "Machines", "Images", "Storage",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Logging", package: "swift-log"),
            ],
            // Swift's libraries within: it starts in half the time, and runs where Swift is not installed.
            linkerSettings: [
                .unsafeFlags([
                    "-static-stdlib", "-Xlinker", "--gc-sections", "-lCoreFoundation", "-l_FoundationCShims",
                    "-l_FoundationCollections", "-l_FoundationICU", "-lstdc++",
                ])
            ]),
        .testTarget(name: "CommandLineTests", dependencies: ["HostOS", "Images", "Machine", "MachineTesting"]),
    ],
    swiftLanguageModes: [.v6]
)

/// Targets where every line would say `unsafe`: there each file's header states the invariants instead.
let trustedCore: Set<String> = ["CPU", "GuestMemory", "HostOS", "KVM", "roost-agent", "roost-bench"]

for target in package.targets
where target.type != .system && !target.name.hasPrefix("CHost") && !["CAgent", "CNBD", "CURing"].contains(target.name) {
    var settings: [SwiftSetting] = [
        .treatAllWarnings(as: .error),
        .enableUpcomingFeature("ExistentialAny"),
        .enableUpcomingFeature("MemberImportVisibility"),
        .enableUpcomingFeature("InternalImportsByDefault"),
    ]
    if target.type != .test && !trustedCore.contains(target.name) {
        settings.append(.strictMemorySafety())
    }
    target.swiftSettings = (target.swiftSettings ?? []) + settings
}

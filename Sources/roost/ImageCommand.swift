// `roost image`: building and listing guest images.
internal import ArgumentParser
internal import Foundation
internal import Images

/// `roost image`.
struct ImageCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "image", abstract: "Build and list guest images.",
        subcommands: [SelfCheck.self])

    /// `roost image self-check`, for those who debug guests; not listed.
    struct SelfCheck: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "self-check", abstract: "Write the initramfs that checks its machine.", shouldDisplay: false)

        @Option(name: .shortAndLong, help: "The file to write.")
        var output: String

        @Option(help: "The kernel it is for: cloud or standard.")
        var kernel: String = "cloud"

        func run() throws {
            guard let flavor = DebianKernel.Flavor(rawValue: kernel) else {
                throw ValidationError("there is no kernel '\(kernel)': cloud or standard")
            }
            let found = try DebianKernel.fetched(flavor)
            try Data(SelfCheckImage.initramfs(for: found)).write(to: URL(fileURLWithPath: output))
            print("boot it with --kernel \(found.image) --initrd \(output) --append console=ttyS0")
        }
    }
}

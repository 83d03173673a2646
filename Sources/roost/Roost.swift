import ArgumentParser

@main
struct Roost: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Virtual machines for x86-64 Linux hosts.", subcommands: [ImageCommand.self])
}

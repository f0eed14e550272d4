//! The program; `cli` is where it begins.

fn main() -> std::process::ExitCode {
    streamgauge::cli::main()
}

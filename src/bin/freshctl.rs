//! The admin's and developer's command. A shim: everything is in [`freshd::ctl`].

fn main() -> std::process::ExitCode {
    freshd::ctl::main()
}

#![no_main]

#[path = "../inputs.rs"]
#[allow(dead_code)]
mod inputs;

thread_local! {
    static DIR: tempfile::TempDir = tempfile::tempdir().expect("a directory for the file");
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    DIR.with(|dir| inputs::config(data, &dir.path().join("freshd.toml")));
});

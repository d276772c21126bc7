# README.md's links into the repository, as they lead in the package: what was in config/ is an example there.
# Run over README.md by systemd/package; tests/readme.rs holds it against the package's list of files.
s|](config/examples/|](examples/|g
s|](config/|](examples/|g
s|](tests/bench/|](|g
s|](systemd)|](/usr/lib/systemd/system)|g
s|](LICENSE-[A-Z]*)|](copyright)|g
# The source is not in the package.
s|\[\(src/[^]]*\)](src/[^)]*)|`\1`|g

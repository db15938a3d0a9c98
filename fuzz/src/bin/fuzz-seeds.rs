//! Writes the seeds of all targets into `fuzz/corpus/TARGET/seed-NAME`, or runs one target on files:
//!
//! ```text
//! fuzz-seeds                 write the seeds
//! fuzz-seeds TARGET FILE…    run a target on files, such as a crash
//! ```

use std::path::Path;
use std::{env, fs, io};

use podlane_fuzz::TARGETS;

fn main() -> io::Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let Some((target, files)) = arguments.split_first() else { return write() };
    for file in files {
        podlane_fuzz::run(target, &fs::read(file)?);
        println!("{target}: {file}: nothing wrong");
    }
    Ok(())
}

fn write() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in TARGETS {
        let directory = corpus.join(target.name);
        fs::create_dir_all(&directory)?;
        for file in fs::read_dir(&directory)? {
            let file = file?;
            if file.file_name().to_string_lossy().starts_with("seed-") {
                fs::remove_file(file.path())?;
            }
        }
        for (name, bytes) in (target.seeds)() {
            fs::write(directory.join(format!("seed-{name}")), bytes)?;
        }
    }
    Ok(())
}

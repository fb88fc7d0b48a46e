// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pulls an image into an OCI image layout: `pull NAME DIRECTORY`.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use coracle_oci::image::{Descriptor, Name};
use coracle_registry::{Client, Layout, Options, Progress, RegistryError, State};

/// A line for each thing that ends.
struct Lines;

impl Progress for Lines {
    fn begin(&self, blobs: &[Descriptor]) {
        let bytes: u64 = blobs.iter().map(|blob| blob.size).sum();
        eprintln!("{} blobs, {bytes} bytes", blobs.len());
    }

    fn blob(&self, blob: &Descriptor, state: State) {
        match state {
            State::Exists => eprintln!("{} was there", blob.digest),
            State::Finished => eprintln!("{} pulled, {} bytes", blob.digest, blob.size),
            _ => {}
        }
    }

    fn retrying(&self, error: &RegistryError, wait: Duration) {
        eprintln!("{error}; trying again in {:.1} s", wait.as_secs_f64());
    }
}

fn pull(name: &str, directory: &str) -> Result<(), Box<dyn Error>> {
    let name: Name = name.parse()?;
    let layout = Layout::open(directory)?;
    let pulled = Client::new(Options::from_environment()).pull(&name, &layout, &Lines)?;
    layout.name(name.tag().unwrap_or("latest"), &pulled.manifest)?;
    println!("{}", pulled.image.digest);
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, directory] = arguments.as_slice() else {
        eprintln!("usage: pull NAME DIRECTORY");
        return ExitCode::from(2);
    };
    let Err(error) = pull(name, directory) else {
        return ExitCode::SUCCESS;
    };
    eprint!("pull: {error}");
    let mut source = error.source();
    while let Some(error) = source {
        eprint!(": {error}");
        source = error.source();
    }
    eprintln!();
    ExitCode::FAILURE
}

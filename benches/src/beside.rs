// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a container costs beside one that is no virtual machine: the same image under `runc` and `crun`.

use std::fs;
use std::io::{Read, Write, pipe};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Cli;
use crate::count::now;
use crate::report::Row;
use crate::start::{median_of, millions};
use crate::subject::{Kernel, Runs};

/// A cached image's first byte beside `runc run`'s, at most.
const START_RATIO: f64 = 1.9;
/// Bytes through a container's streams beside those through `crun run`'s, at most.
const STREAM_RATIO: f64 = 1.5;
/// Bytes that are sent through.
const STREAMED: usize = 64 << 20;

/// Instruction counts beside other runtimes.
pub fn runtimes(cli: &Cli) -> Result<Vec<Row>> {
    let image = cli.images.join("busybox");
    let runs = Runs::new(&cli.coracle, &cli.guest, Kernel::Small, image.clone())?;
    runs.unpack()?;
    let runc = Bundle::unpack("runc", &image)?;
    let crun = Bundle::unpack("crun", &image)?;

    let first = |what: &str, command: &dyn Fn() -> Result<Command>| {
        eprintln!("bench: {what} to its first byte, {} times", cli.rounds);
        // What it is made of is in the page cache from then on, as the image of ours is.
        let status = command()?.stdout(Stdio::null()).status()?;
        ensure!(status.success(), "{what} failed: {status}");
        let subject = || {
            let (read, write) = pipe()?;
            let mut command = command()?;
            command.stdout(write);
            Ok((command, read))
        };
        median_of(cli.rounds, &subject, &millions)
    };
    let runc_start = first("runc run", &|| runc.run(&["echo", "x"]))?;
    let crun_start = first("crun run", &|| crun.run(&["echo", "x"]))?;
    let start = first("coracle run", &|| Ok(runs.command(&["echo", "x"])))?;

    eprintln!("bench: {} MiB through cat", STREAMED >> 20);
    let crun_stream = streamed(crun.run(&["cat"])?)?;
    let stream = streamed(runs.interactive(&["cat"]))?;

    let row = |name, figure| Row::millions(name, figure, None);
    Ok(vec![
        row("runc run, busybox bundle, to its first byte", runc_start),
        row("crun run: the same", crun_start),
        row("coracle run, cached busybox image: the same", start),
        Row::ratio(
            "coracle run beside runc run",
            start / runc_start,
            START_RATIO,
        ),
        row("crun run, 64 MiB through cat", crun_stream),
        row("coracle run -i: the same", stream),
        Row::ratio(
            "64 MiB through coracle run beside crun run",
            stream / crun_stream,
            STREAM_RATIO,
        ),
    ])
}

/// Millions of ticks from the first to the last byte that comes back from a container that copies its input, once it has
/// shown that it does.
fn streamed(mut command: Command) -> Result<f64> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let outcome = stream(&mut child);
    if outcome.is_err() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    let ticks = outcome?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(ticks as f64 / 1e6)
}

fn stream(child: &mut Child) -> Result<u64> {
    let (Some(mut input), Some(mut output)) = (child.stdin.take(), child.stdout.take()) else {
        bail!("a program without streams");
    };
    input.write_all(b"x")?;
    output
        .read_exact(&mut [0])
        .context("nothing came back of what was written")?;
    let started = now();
    let writer = thread::spawn(move || input.write_all(&vec![b'x'; STREAMED]));
    let mut piece = vec![0; 1 << 16];
    let mut came = 0;
    while came < STREAMED {
        match output.read(&mut piece)? {
            0 => bail!("{came} bytes came back of {STREAMED}"),
            length => came += length,
        }
    }
    let ticks = now() - started;
    match writer.join() {
        Ok(written) => written.context("the input was not read")?,
        Err(_) => bail!("the thread that writes panicked"),
    }
    Ok(ticks)
}

/// An image as a bundle of its own, for a runtime that takes those.
struct Bundle {
    runtime: &'static str,
    directory: TempDir,
}

impl Bundle {
    fn unpack(runtime: &'static str, image: &Path) -> Result<Self> {
        let directory = TempDir::new().context("cannot make a temporary directory")?;
        let tag = tag_of(image)?;
        let status = Command::new("umoci")
            .args(["--log=error", "unpack", "--image"])
            .arg(format!("{}:{tag}", image.display()))
            .arg(directory.path().join("bundle"))
            .status()
            .context("cannot run umoci")?;
        ensure!(status.success(), "umoci unpacks no bundle: {status}");
        Ok(Self { runtime, directory })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("bundle")
    }

    /// The command that runs `words` in it.
    fn run(&self, words: &[&str]) -> Result<Command> {
        let path = self.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["process"]["args"] = json!(words);
        config["process"]["terminal"] = json!(false);
        fs::write(&path, serde_json::to_vec(&config)?)?;
        let mut command = Command::new(self.runtime);
        command
            .arg("--root")
            .arg(self.directory.path().join("root"))
            .args(["run", "--bundle"])
            .arg(self.path())
            // A run that was cut short may still have its name.
            .arg(format!("bench-{}", now()))
            .stdin(Stdio::null());
        Ok(command)
    }
}

/// The name of the one image of a layout.
fn tag_of(image: &Path) -> Result<String> {
    let index: Value = serde_json::from_slice(&fs::read(image.join("index.json"))?)?;
    let name = &index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"];
    let name = name.as_str().context("the test image has no name")?;
    Ok(name.to_owned())
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Unpacking an image, beside `umoci unpack` of the same image, in one run: `cargo bench -p coracle-oci -- LAYOUT`.
//!
//! LAYOUT is a directory with one image of one layer; the image is also unpacked as several layers, split out of that
//! one, and with layers compressed by zstd. Rounds alternate between the two programs, and the fastest of each counts: what
//! disturbs a measurement only ever makes it slower.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use coracle_oci::digest::{Algorithm, Digest};
use coracle_oci::image::{Compression, Image, Source};
use coracle_oci::layer::Options;
use coracle_oci::store::Store;
use coracle_oci::unpack::unpack;
use serde_json::{Value, json};

/// The time that an image of one layer takes beside `umoci unpack`, at most.
const ONE_LAYER: f64 = 1.2;
/// That of one with several, on two processors or more.
const SEVERAL_LAYERS: f64 = 1.0;
/// Rounds, of which the fastest counts.
const ROUNDS: usize = 7;

type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let Some(layout) = std::env::args_os()
        .skip(1)
        .find(|argument| argument != "--bench")
    else {
        eprintln!("usage: cargo bench -p coracle-oci -- LAYOUT");
        return ExitCode::SUCCESS;
    };
    match compare(Path::new(&layout)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(layout: &Path) -> Result<(), Error> {
    let place = tempfile::tempdir()?;
    let several = place.path().join("several");
    let zstd = place.path().join("zstd");
    split_layers(layout, &several, 4, Compression::Gzip)?;
    split_layers(layout, &zstd, 4, Compression::Zstd)?;
    println!("elapsed ms (processor ms); ratios are of elapsed time to that of `umoci unpack`");
    let mut base = f64::NAN;
    let mut missed = Vec::new();
    for (name, path, can_umoci, bound) in [
        ("one layer", layout, true, ONE_LAYER),
        ("four layers", &several, true, SEVERAL_LAYERS),
        ("four of zstd", &zstd, false, SEVERAL_LAYERS),
    ] {
        let rounds = rounds(path, place.path(), can_umoci)?;
        // It reads no zstd: its time for the same layers of gzip counts.
        base = rounds[0].map_or(base, |cost| cost.elapsed.as_secs_f64());
        print!("{name:<14}");
        for (cost, what) in
            rounds
                .iter()
                .zip(["umoci unpack", "umoci raw unpack", "unpack", "store"])
        {
            let Some(cost) = cost else { continue };
            let ratio = cost.elapsed.as_secs_f64() / base;
            let (elapsed, processor) = (cost.elapsed.as_millis(), cost.processor.as_millis());
            print!("| {what} {elapsed} ({processor}) {ratio:.2} ");
        }
        println!("| at most {bound:.2}");
        let ours = rounds[3].map_or(f64::NAN, |cost| cost.elapsed.as_secs_f64());
        if ours / base > bound {
            missed.push(name);
        }
    }
    match missed.is_empty() {
        true => Ok(()),
        false => Err(format!("slower than it should be at most: {}", missed.join(", ")).into()),
    }
}

/// What an act takes.
#[derive(Clone, Copy)]
struct Cost {
    elapsed: Duration,
    processor: Duration,
}

/// The least cost of all rounds: of `umoci unpack`, `umoci raw unpack`, and ours without and with the store.
fn rounds(layout: &Path, place: &Path, can_umoci: bool) -> Result<[Option<Cost>; 4], Error> {
    let mut best = [None; 4];
    let target = place.join("tree");
    for _ in 0..ROUNDS {
        let mut note = |slot: usize, cost: Cost| {
            let least: &mut Option<Cost> = &mut best[slot];
            *least = Some(least.map_or(cost, |least| Cost {
                elapsed: least.elapsed.min(cost.elapsed),
                processor: least.processor.min(cost.processor),
            }));
        };
        if can_umoci {
            note(0, timed(&target, || umoci(&["unpack"], layout, &target))?);
            note(
                1,
                timed(&target, || umoci(&["raw", "unpack"], layout, &target))?,
            );
        }
        note(2, timed(&target, || ours(layout, &target))?);
        note(3, timed(&target, || stored(layout, &target))?);
    }
    Ok(best)
}

/// How long `act` takes; what it makes at `target` is removed.
fn timed(target: &Path, act: impl FnOnce() -> Result<(), Error>) -> Result<Cost, Error> {
    let (start, before) = (Instant::now(), processor_time()?);
    act()?;
    let cost = Cost {
        elapsed: start.elapsed(),
        processor: processor_time()? - before,
    };
    fs::remove_dir_all(target)?;
    Ok(cost)
}

/// Processor time of this process and of those that it waited for.
fn processor_time() -> Result<Duration, Error> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").ok_or("a process without a name")?;
    // utime, stime, cutime, cstime (proc_pid_stat(5)), in hundredths of a second.
    let ticks = fields.split(' ').skip(11).take(4).map(str::parse::<u64>);
    let ticks: u64 = ticks.collect::<Result<Vec<_>, _>>()?.into_iter().sum();
    Ok(Duration::from_millis(10 * ticks))
}

fn umoci(verb: &[&str], layout: &Path, target: &Path) -> Result<(), Error> {
    let status = Command::new("umoci")
        .args(verb)
        .arg("--image")
        .arg(format!("{}:latest", layout.display()))
        .arg(target)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("umoci: {status}").into())
    }
}

fn ours(layout: &Path, target: &Path) -> Result<(), Error> {
    let (source, image) = found(layout)?;
    fs::create_dir(target)?;
    Ok(unpack(
        &source,
        &image,
        File::open(target)?.into(),
        Options::default(),
        None,
    )?)
}

fn stored(layout: &Path, target: &Path) -> Result<(), Error> {
    let (source, image) = found(layout)?;
    Store::open(target)?.unpacked(&source, &image, Options::default(), None)?;
    Ok(())
}

fn found(layout: &Path) -> Result<(Source, Image), Error> {
    let source = Source::open(layout)?;
    let image = source.image(None)?;
    Ok((source, image))
}

/// Writes a layout whose image has the entries of the other's in `count` layers.
fn split_layers(from: &Path, to: &Path, count: u64, compression: Compression) -> Result<(), Error> {
    let (source, image) = found(from)?;
    let blobs = to.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut tar = Vec::new();
    for layer in &image.layers {
        let blob = source.blob(&layer.descriptor, "layer")?;
        match layer.compression {
            Compression::None => io::BufReader::new(blob).read_to_end(&mut tar)?,
            _ => flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut tar)?,
        };
    }
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for part in parts(&tar, count)? {
        diff_ids.push(Digest::of(Algorithm::Sha256, &part).to_string());
        let (format, content) = match compression {
            Compression::None => ("tar", part),
            Compression::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(&part)?;
                ("tar+gzip", encoder.finish()?)
            }
            Compression::Zstd => {
                let level = ruzstd::encoding::CompressionLevel::Fastest;
                (
                    "tar+zstd",
                    ruzstd::encoding::compress_to_vec(part.as_slice(), level),
                )
            }
        };
        let media_type = format!("application/vnd.oci.image.layer.v1.{format}");
        layers.push(blob(&blobs, &media_type, &content)?);
    }
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob(
        &blobs,
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    )?;
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    let mut manifest = blob(
        &blobs,
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    )?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    fs::write(
        to.join("index.json"),
        json!({"schemaVersion": 2, "manifests": [manifest]}).to_string(),
    )?;
    fs::write(to.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

/// A tar stream's entries in streams of about equal size.
fn parts(tar: &[u8], count: u64) -> Result<Vec<Vec<u8>>, Error> {
    // Each entry ends where its content does, rounded up to a block; extended headers belong to the entry after them.
    let mut ends = Vec::new();
    for entry in tar::Archive::new(tar).entries()? {
        let entry = entry?;
        ends.push(entry.raw_file_position() + entry.size().next_multiple_of(512));
    }
    let size = tar.len() as u64;
    let mut parts = Vec::new();
    let mut start = 0;
    for number in 1..=count {
        let last = ends.last().copied().unwrap_or(0);
        let end = ends
            .iter()
            .copied()
            .find(|end| *end >= size * number / count)
            .unwrap_or(last);
        let mut part = tar[usize::try_from(start)?..usize::try_from(end)?].to_vec();
        part.resize(part.len() + 1024, 0);
        parts.push(part);
        start = end;
    }
    Ok(parts)
}

fn blob(blobs: &Path, media_type: &str, content: &[u8]) -> Result<Value, Error> {
    let digest = Digest::of(Algorithm::Sha256, content);
    fs::write(blobs.join(digest.hex()), content)?;
    Ok(json!({"mediaType": media_type, "digest": digest.to_string(), "size": content.len()}))
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How far an image is, in one line of the terminal that is drawn anew as it goes on.
//!
//! Nothing in the line comes from an image or a registry but numbers.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_oci::digest::Digest;
use coracle_oci::image::{Descriptor, Layer};
use coracle_oci::unpack;
use coracle_registry::{Progress, RegistryError, State};

use crate::printable::printable;
use crate::table::bytes;
use crate::terminal;

/// Time between two drawings, and before the first: what is done soon is not shown.
const PERIOD: Duration = Duration::from_millis(100);
/// Width of a terminal that does not tell its own.
const COLUMNS: usize = 80;
/// Has a terminal go to the line's beginning and clear it.
const CLEAR: &str = "\r\x1b[K";

/// How far something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Figures {
    bytes: u64,
    all_bytes: u64,
    parts: usize,
    all_parts: usize,
}

impl Figures {
    /// In a line of fewer than `columns` characters, so that it does not wrap.
    fn line(&self, what: &str, elapsed: Duration, columns: usize) -> String {
        let seconds = u64::try_from(elapsed.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let rate = self.bytes.saturating_mul(1000) / seconds;
        let text = format!(
            "{what}: {} of {}, {} of {} layers, {}/s",
            bytes(self.bytes),
            bytes(self.all_bytes),
            self.parts,
            self.all_parts,
            bytes(rate)
        );
        text.chars().take(columns.saturating_sub(1)).collect()
    }
}

/// The line; cleared when it is dropped.
struct Line {
    what: &'static str,
    is_terminal: bool,
    state: Mutex<Drawing>,
}

struct Drawing {
    figures: Figures,
    /// What came so far of each part that is not done.
    received: HashMap<Digest, u64>,
    begun: Instant,
    drawn: Instant,
    is_shown: bool,
}

impl Line {
    fn new(what: &'static str) -> Self {
        let now = Instant::now();
        Self {
            what,
            is_terminal: io::stderr().is_terminal(),
            state: Mutex::new(Drawing {
                figures: Figures::default(),
                received: HashMap::new(),
                begun: now,
                drawn: now,
                is_shown: false,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Drawing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes something, and draws the line if it is time.
    fn update(&self, note: impl FnOnce(&mut Drawing)) {
        let mut drawing = self.lock();
        note(&mut drawing);
        if !self.is_terminal || drawing.drawn.elapsed() < PERIOD {
            return;
        }
        drawing.drawn = Instant::now();
        drawing.is_shown = true;
        let columns = terminal::size(io::stderr()).map_or(COLUMNS, |size| size.columns.into());
        let line = drawing
            .figures
            .line(self.what, drawing.begun.elapsed(), columns);
        // Who does not see how far it is gets the image all the same.
        let _ = write!(io::stderr(), "{CLEAR}{line}");
    }

    /// Says something above the line.
    fn say(&self, text: &str) {
        let mut drawing = self.lock();
        clear(&mut drawing);
        let _ = writeln!(io::stderr(), "{}", printable(text));
    }
}

fn clear(drawing: &mut Drawing) {
    if std::mem::take(&mut drawing.is_shown) {
        let _ = write!(io::stderr(), "{CLEAR}");
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        clear(&mut self.lock());
    }
}

/// Shows how far a pull is.
pub struct Pulling(Line);

impl Pulling {
    pub fn new() -> Self {
        Self(Line::new("pulling"))
    }

    /// Bytes that were pulled.
    pub fn pulled(&self) -> u64 {
        self.0.lock().figures.bytes
    }
}

impl Progress for Pulling {
    fn begin(&self, blobs: &[Descriptor]) {
        // The first is the config, which is no layer.
        let layers = blobs.get(1..).unwrap_or_default();
        self.0.update(|drawing| {
            drawing.figures = Figures::default();
            drawing.received.clear();
            for layer in layers {
                if drawing.received.insert(layer.digest.clone(), 0).is_none() {
                    let figures = &mut drawing.figures;
                    figures.all_parts += 1;
                    figures.all_bytes = figures.all_bytes.saturating_add(layer.size);
                }
            }
        });
    }

    fn blob(&self, blob: &Descriptor, state: State) {
        self.0.update(|drawing| {
            let Drawing {
                figures, received, ..
            } = drawing;
            let Some(before) = received.get(&blob.digest).copied() else {
                return;
            };
            let now = match state {
                State::Received(bytes) => {
                    let bytes = bytes.min(blob.size);
                    received.insert(blob.digest.clone(), bytes);
                    bytes
                }
                State::Finished => {
                    received.remove(&blob.digest);
                    figures.parts += 1;
                    blob.size
                }
                // There is less to be pulled.
                _ => {
                    received.remove(&blob.digest);
                    figures.all_parts = figures.all_parts.saturating_sub(1);
                    figures.all_bytes = figures.all_bytes.saturating_sub(blob.size);
                    before
                }
            };
            figures.bytes = figures.bytes.saturating_sub(before).saturating_add(now);
        });
    }

    fn retrying(&self, error: &RegistryError, wait: Duration) {
        let when = match wait.is_zero() {
            true => "at once".to_owned(),
            false => format!("in {:.1} s", wait.as_secs_f64()),
        };
        self.0.say(&format!("{error}; trying again {when}"));
    }
}

/// Shows how far an image is unpacked, or copied into the store.
pub struct Unpacking(Line);

impl Unpacking {
    pub fn new() -> Self {
        Self(Line::new("unpacking"))
    }

    pub fn copying() -> Self {
        Self(Line::new("copying"))
    }
}

impl unpack::Progress for Unpacking {
    fn begun(&self, bytes: u64, layers: usize) {
        self.0.update(|drawing| {
            drawing.figures = Figures {
                all_bytes: bytes,
                all_parts: layers,
                ..Figures::default()
            };
        });
    }

    fn advanced(&self, bytes: u64) {
        self.0.update(|drawing| {
            drawing.figures.bytes = drawing.figures.bytes.saturating_add(bytes);
        });
    }

    fn layer_begun(&self, _index: usize, _layer: &Layer) {}

    fn layer_done(&self, _index: usize) {
        self.0.update(|drawing| drawing.figures.parts += 1);
    }
}

#[cfg(test)]
mod tests {
    use coracle_oci::digest::Algorithm;

    use super::*;

    fn blob(content: &[u8], size: u64) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: Digest::of(Algorithm::Sha256, content),
            size,
            platform: None,
            annotations: [].into(),
        }
    }

    #[test]
    fn line_says_how_far_it_is() {
        let figures = Figures {
            bytes: 3 << 20,
            all_bytes: 6 << 20,
            parts: 1,
            all_parts: 4,
        };

        assert_eq!(
            figures.line("pulling", Duration::from_secs(2), 80),
            "pulling: 3.0 MiB of 6.0 MiB, 1 of 4 layers, 1.5 MiB/s"
        );
    }

    #[test]
    fn line_fits_the_terminal() {
        let line = Figures::default().line("pulling", Duration::ZERO, 12);

        assert_eq!(line, "pulling: 0 ");
        assert_eq!(Figures::default().line("pulling", Duration::ZERO, 0), "");
    }

    #[test]
    fn layer_that_begins_anew_counts_once() {
        let pulling = Pulling::new();
        let (config, layer) = (blob(b"config", 5), blob(b"layer", 100));
        pulling.begin(&[config.clone(), layer.clone()]);
        pulling.blob(&config, State::Finished);

        pulling.blob(&layer, State::Received(80));
        pulling.blob(&layer, State::Received(10));
        assert_eq!(pulling.pulled(), 10);

        pulling.blob(&layer, State::Finished);
        let expected = Figures {
            bytes: 100,
            all_bytes: 100,
            parts: 1,
            all_parts: 1,
        };
        assert_eq!(pulling.0.lock().figures, expected);
    }

    #[test]
    fn layer_that_is_named_twice_counts_once() {
        let pulling = Pulling::new();
        let (config, layer, other) = (blob(b"config", 5), blob(b"layer", 100), blob(b"other", 10));
        pulling.begin(&[
            config,
            layer.clone(),
            other.clone(),
            layer.clone(),
            other.clone(),
        ]);

        for _ in 0..2 {
            pulling.blob(&layer, State::Exists);
            pulling.blob(&other, State::Finished);
        }

        let expected = Figures {
            bytes: 10,
            all_bytes: 10,
            parts: 1,
            all_parts: 1,
        };
        assert_eq!(pulling.0.lock().figures, expected);
    }

    #[test]
    fn layer_that_is_there_is_not_pulled() {
        let pulling = Pulling::new();
        let (config, layer) = (blob(b"config", 5), blob(b"layer", 100));
        pulling.begin(&[config, layer.clone()]);

        pulling.blob(&layer, State::Exists);

        assert_eq!(pulling.0.lock().figures, Figures::default());
    }
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Long steps that say what they do, and programs that run in them.

use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Signal, set_parent_process_death_signal};

/// How much of a failed program's output is shown, in bytes.
const SHOWN: u64 = 4096;

/// A step that is under way. On a terminal its line counts the seconds; elsewhere it is printed
/// once, when the step is done.
#[derive(Debug)]
pub struct Step {
    title: String,
    begun: Instant,
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Step {
    /// Begins a step.
    #[must_use]
    pub fn begin(title: &str) -> Self {
        let begun = Instant::now();
        let ticker = std::io::stderr().is_terminal().then(|| {
            let (stop, stopped) = channel();
            let title = title.to_owned();
            let thread = std::thread::spawn(move || {
                while stopped
                    .recv_timeout(Duration::from_millis(200))
                    .is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout)
                {
                    eprint!("\rlab: {title} … {} s", begun.elapsed().as_secs());
                    let _ = std::io::stderr().flush();
                }
            });
            (stop, thread)
        });
        Self {
            title: title.to_owned(),
            begun,
            ticker,
        }
    }

    /// Ends the step and says how long it took.
    pub fn done(mut self) {
        self.stop();
        eprintln!(
            "lab: {} ({:.1} s)",
            self.title,
            self.begun.elapsed().as_secs_f32()
        );
    }

    fn stop(&mut self) {
        if let Some((stop, thread)) = self.ticker.take() {
            drop(stop);
            let _ = thread.join();
            eprint!("\r\x1b[K");
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs a program and returns its standard output. It does not outlive this process.
///
/// # Errors
///
/// If the program cannot be run, or fails: then with the end of what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut log = tempfile::tempfile().context("cannot create a temporary file")?;
    let mut child = bound_to_this_process(command, Signal::TERM)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot run {name} (`make deps` installs what is needed)"))?;
    let mut text = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout
            .read_to_string(&mut text)
            .with_context(|| format!("{name} wrote no text"))?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!(
            "{name} ended with {status}:\n{}{}",
            tail(&mut log)?,
            text.trim_end()
        );
    }
    Ok(text)
}

/// Makes a command's process end, by this signal, when the calling thread does.
pub fn bound_to_this_process(command: &mut Command, signal: Signal) -> &mut Command {
    let parent = rustix::process::getpid();
    // SAFETY: the closure only makes system calls; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(signal))?;
            // The parent may have ended before the line above.
            if rustix::process::getppid() != Some(parent) {
                return Err(rustix::io::Errno::SRCH.into());
            }
            Ok(())
        })
    }
}

fn tail(log: &mut File) -> Result<String> {
    let length = log.seek(SeekFrom::End(0))?;
    log.seek(SeekFrom::Start(length.saturating_sub(SHOWN)))?;
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_program_is_reported_with_what_it_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo the reason >&2; exit 3"]);

        let error = output(&mut command).unwrap_err().to_string();

        assert!(error.contains("sh ended with exit status: 3"), "{error}");
        assert!(error.contains("the reason"), "{error}");
    }
}

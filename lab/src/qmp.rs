// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The emulator's monitor protocol: one JSON object a line, a command at a time.

use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

/// How long the emulator may take to answer.
const DEADLINE: Duration = Duration::from_secs(60);

/// A connection to the monitor.
#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Greets the emulator at the other end.
    ///
    /// # Errors
    ///
    /// If it does not answer.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut monitor = Self {
            stream: BufReader::new(stream),
        };
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Runs a command and returns its result. Events that arrive before it are dropped.
    ///
    /// # Errors
    ///
    /// If the emulator refuses the command, or does not answer.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{request}")
            .with_context(|| format!("cannot send {command} to the emulator"))?;
        self.answer(command)
    }

    /// Hands the emulator an open file, which its commands then know by `name`.
    ///
    /// # Errors
    ///
    /// As for [`Monitor::execute`].
    pub fn pass(&mut self, name: &str, file: impl AsFd) -> Result<()> {
        let request = json!({ "execute": "getfd", "arguments": { "fdname": name } });
        let line = format!("{request}\n");
        let descriptors = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        ensure!(
            control.push(SendAncillaryMessage::ScmRights(&descriptors)),
            "the space for one descriptor is too small"
        );
        let bytes = [IoSlice::new(line.as_bytes())];
        sendmsg(
            self.stream.get_ref(),
            &bytes,
            &mut control,
            SendFlags::empty(),
        )
        .context("cannot send a file to the emulator")?;
        self.answer("getfd")?;
        Ok(())
    }

    fn answer(&mut self, command: &str) -> Result<Value> {
        loop {
            let mut line = String::new();
            let count = self
                .stream
                .read_line(&mut line)
                .with_context(|| format!("the emulator does not answer {command}"))?;
            if count == 0 {
                bail!("the emulator hung up before it answered {command}");
            }
            let mut answer: Value = serde_json::from_str(&line)
                .with_context(|| format!("the emulator answers {command} with {line:?}"))?;
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("the emulator refuses {command}: {}", error["desc"]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A monitor whose other end has already said all that it will say.
    fn monitor(answers: &str) -> Result<Monitor> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answers.as_bytes()).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        // The other end stays open for what is written to it.
        std::mem::forget(theirs);
        Monitor::new(ours)
    }

    #[test]
    fn greeting_and_events_are_passed_over() {
        let mut monitor = monitor(
            "{\"QMP\": {}}\n{\"return\": {}}\n{\"event\": \"STOP\"}\n\
             {\"return\": {\"status\": \"paused\"}}\n",
        )
        .unwrap();

        let result = monitor.execute("query-status", &json!({})).unwrap();

        assert_eq!(result["status"], "paused");
    }

    #[test]
    fn refusal_carries_the_emulators_words() {
        let mut monitor =
            monitor("{\"return\": {}}\n{\"error\": {\"desc\": \"no such thing\"}}\n").unwrap();

        let error = monitor.execute("cont", &json!({})).unwrap_err();

        assert_eq!(
            error.to_string(),
            "the emulator refuses cont: \"no such thing\""
        );
    }

    #[test]
    fn end_of_the_emulator_is_an_error() {
        let error = monitor("").unwrap_err();

        assert_eq!(
            error.to_string(),
            "the emulator hung up before it answered qmp_capabilities"
        );
    }
}

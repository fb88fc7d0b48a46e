// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices with a vhost-user back end: against one that others wrote, and against one that does as it likes. On the
//! guest's side is a driver of ours.

mod fs;
mod guest;
mod net;
mod reverse;
mod scripted;
mod wrong;

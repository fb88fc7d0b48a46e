// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whoever attacks the host (the guest, the container, the image, another user) gets an error or what is theirs, and
//! nothing of the host.

mod agent;
mod containers;
mod floods;
mod images;
mod places;
mod setup;

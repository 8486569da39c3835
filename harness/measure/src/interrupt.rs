//! Ctrl-C: the first one asks, so that what was measured is written down; the second one ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// The exit code of a program that Ctrl-C ended, as shells have it: 128 plus the signal's number.
pub const EXIT_CODE: u8 = 130;

/// Ctrl-C was pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; the records written so far are complete")]
pub struct Interrupted;

/// Whether Ctrl-C was pressed since [`listen`].
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Fails once Ctrl-C was pressed.
///
/// # Errors
/// [`Interrupted`].
pub fn check() -> Result<(), Interrupted> {
    if requested() { Err(Interrupted) } else { Ok(()) }
}

/// From now on the first Ctrl-C only sets what [`requested`] returns. Commands that do not ask for it are simply ended.
pub fn listen() {
    imp::listen(false);
}

/// The same for Ctrl-C and for SIGTERM, with which service managers and batch systems ask a program to end.
pub fn listen_to_termination() {
    imp::listen(true);
}

#[cfg(unix)]
mod imp {
    use super::{Ordering, REQUESTED};

    extern "C" fn remember(_signal: libc::c_int) {
        // Storing an atomic is all that a signal handler may do here.
        REQUESTED.store(true, Ordering::Relaxed);
    }

    pub(super) fn listen(to_termination: bool) {
        // SAFETY: an all-zero `sigaction` is a valid value of that C struct: no flags, an empty mask, no handler.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = remember as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SA_RESETHAND: the second signal finds the default action again. SA_RESTART: reads and writes go on undisturbed.
        action.sa_flags = libc::SA_RESETHAND | libc::SA_RESTART;
        for signal in [libc::SIGINT, libc::SIGTERM].into_iter().take(1 + usize::from(to_termination)) {
            // SAFETY: `action` is initialised and outlives the call, the handler is async-signal-safe, and no old action is
            // asked for.
            unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) };
        }
    }
}

#[cfg(not(unix))]
mod imp {
    /// Elsewhere Ctrl-C ends the program; records are whole lines all the same.
    pub(super) fn listen(_to_termination: bool) {}
}

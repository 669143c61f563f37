//! Link preparation: the only code that may change a machine's network.
//!
//! There is none in this version, and the controller's request is refused, so that nothing rests on a preparation that
//! did not happen.

/// What the controller is told.
pub const REFUSAL: &str = "link preparation is not built into this version";

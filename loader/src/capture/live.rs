//! `podlane trace --live`: real packets, stage by stage.

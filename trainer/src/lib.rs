//! The training loop: step, optimizer, schedule, checkpoint, resume.

"""Multi-teacher on-policy distillation: several specialists into one student, without the seesaw."""

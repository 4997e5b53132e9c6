"""Stages of the kernel's own self test (netns.sh; protocol 4.5) that make sense for a process in userspace."""

/* The running thread as a kernel module sees its task: what of it a program has. */
#ifndef SPILE_KERNEL_SCHED_H
#define SPILE_KERNEL_SCHED_H
#pragma GCC system_header

#include_next <linux/sched.h>
#include <linux/types.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TASK_COMM_LEN 16
struct task_struct {
  pid_t pid;   /* of the thread, as in the kernel */
  pid_t tgid;  /* of the process */
  char comm[TASK_COMM_LEN];
  void* mm;    /* not null: no program is a kernel thread */
};

/* Read anew each time: three system calls. */
__attribute__((unused)) static struct task_struct* spile_current_(void) {
  static __thread struct task_struct task;
  task.pid = (pid_t)syscall(SYS_gettid);
  task.tgid = getpid();
  prctl(PR_GET_NAME, task.comm);
  task.mm = &task;
  return &task;
}
#define current spile_current_()

#endif

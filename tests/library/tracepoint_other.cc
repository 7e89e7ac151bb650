#include "events.h"

void pass_request_elsewhere(int fd, const char* path) { trace_demo_request(fd, path); }

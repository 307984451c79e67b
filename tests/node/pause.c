#include <unistd.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
static void stop(int s){exit(0);} static void reap(int s){while(waitpid(-1,0,WNOHANG)>0);}
int main(){signal(SIGTERM,stop);signal(SIGINT,stop);signal(SIGCHLD,reap);for(;;)pause();}

# What a person has to read of a test run: not what passed, what it printed, or what was compiled on the way.
{ plain = $0; gsub(/\033\[[0-9;]*m/, "", plain) }
plain ~ /^successes:/ { passed = 1 }
plain ~ /^(failures:|test result:)/ { passed = 0 }
plain ~ /LEFT OUT:/ { print; fflush(); next }
passed || plain == "" { next }
plain ~ /^test .* \.\.\. ok$/ { next }
plain ~ /^ *(Compiling|Downloaded|Downloading|Checking|Documenting) / { next }
{ print; fflush() }
